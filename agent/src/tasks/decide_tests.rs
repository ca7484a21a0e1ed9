use super::*;

const NOW: &str = "2026-06-01T12:00:00Z";
const LATER: &str = "2026-06-01T18:00:00Z";
const EARLIER: &str = "2026-06-01T06:00:00Z";

fn refused(reason: SiteReason) -> Decision {
    Decision::Refused { reason, message: "because".into() }
}

fn tries(states: &[(Mode, TryState)]) -> TaskSeen {
    let tries: Vec<TrySeen> = states
        .iter()
        .zip(1..)
        .map(|((mode, state), number)| TrySeen {
            number,
            mode: *mode,
            job: format!("t-{number}"),
            state: state.clone(),
            trainer_ended: false,
            over: matches!(state, TryState::Ended(_)),
        })
        .collect();
    TaskSeen { last_try: tries.len() as u32, tries, ..TaskSeen::default() }
}

struct Case<'a> {
    inputs: Inputs<'a>,
}

impl<'a> Case<'a> {
    fn new(decision: &'a Decision, task: Option<&'a TaskSeen>) -> Self {
        let inputs = Inputs {
            kind: TaskKind::Train,
            item: ItemState::Active,
            deadline: LATER.parse().unwrap(),
            decision,
            unprobed: false,
            task,
            has_result: false,
            rejected: None,
            others: &[],
            refused: None,
            now: NOW.parse().unwrap(),
        };
        Self { inputs }
    }

    fn with(mut self, edit: impl FnOnce(&mut Inputs<'a>)) -> Self {
        edit(&mut self.inputs);
        self
    }

    #[track_caller]
    fn expect(self, acts: &[Act], reason: impl Into<Option<SiteReason>>) -> Plan {
        let plan = decide(&self.inputs);
        assert_eq!(plan.acts, acts, "{plan:?}");
        assert_eq!(plan.verdict.as_ref().map(|v| v.reason), reason.into(), "{plan:?}");
        plan
    }
}

fn full(end: End) -> (Mode, TryState) {
    (Mode::Full, TryState::Ended(end))
}

fn delivering(end: End) -> (Mode, TryState) {
    (Mode::Deliver, TryState::Ended(end))
}

fn start(number: u32, mode: Mode) -> Act {
    Act::StartTry { number, mode }
}

fn stop(job: &str) -> Act {
    Act::StopTry { job: job.into() }
}

fn failed() -> (Mode, TryState) {
    full(End::Failed("exit 1".into()))
}

const RUNNING: (Mode, TryState) = (Mode::Full, TryState::Running);

#[test]
fn an_allowed_item_becomes_a_task_and_then_a_try() {
    Case::new(&Decision::Allowed, None).expect(&[Act::CreateTask], SiteReason::Queued);
    let empty = TaskSeen::default();
    Case::new(&Decision::Allowed, Some(&empty)).expect(&[start(1, Mode::Full)], SiteReason::Queued);
    let running = tries(&[RUNNING]);
    Case::new(&Decision::Allowed, Some(&running)).expect(&[], SiteReason::Training);
}

/// A hospital that has not said yes must not see a single object of the study.
#[test]
fn a_refusal_makes_no_task_and_an_approval_goes_on() {
    for reason in
        [SiteReason::DeniedByPolicy, SiteReason::SpecChanged, SiteReason::AwaitingApproval, SiteReason::IncompatibleGPU]
    {
        let plan = Case::new(&refused(reason), None).expect(&[], reason);
        assert_eq!(plan.verdict.unwrap().message.as_deref(), Some("because"));
    }
    Case::new(&Decision::SpecNeeded, None).expect(&[], SiteReason::Offered);
    Case::new(&Decision::Allowed, None).expect(&[Act::CreateTask], SiteReason::Queued);
}

/// Governance replaces a roster in the middle of a round: hours of training must not be the price.
#[test]
fn waiting_for_a_roster_starts_nothing_and_stops_nothing() {
    let awaits = refused(SiteReason::AwaitingRoster);
    Case::new(&awaits, None).expect(&[], SiteReason::AwaitingRoster);
    let running = tries(&[RUNNING]);
    Case::new(&awaits, Some(&running)).expect(&[], SiteReason::AwaitingRoster);
    Case::new(&awaits, Some(&running)).with(|i| i.has_result = true).expect(&[], SiteReason::AwaitingRoster);
}

/// A veto stops what runs; a later approval looks for what the stopped try left, under a new fencing number and not
/// counted as a failure, once the pod of that try has let go of the folder.
#[test]
fn a_veto_stops_a_running_try_and_an_approval_makes_the_next() {
    let running = tries(&[failed(), RUNNING]);
    Case::new(&refused(SiteReason::DeniedByPolicy), Some(&running)).expect(&[stop("t-2")], SiteReason::DeniedByPolicy);
    let stopping = tries(&[failed(), (Mode::Full, TryState::Stopping)]);
    Case::new(&Decision::Allowed, Some(&stopping)).expect(&[], SiteReason::Queued);
    let stopped = TaskSeen { last_try: 2, ..tries(&[failed()]) };
    Case::new(&Decision::Allowed, Some(&stopped)).expect(&[start(3, Mode::Deliver)], SiteReason::Queued);
}

/// A restart of the agent must cost nobody a training: until the probe has spoken, what runs goes on.
#[test]
fn before_the_first_probe_nothing_starts_and_nothing_stops() {
    let unknown = refused(SiteReason::NetworkPolicyNotEnforced);
    let running = tries(&[RUNNING]);
    Case::new(&unknown, Some(&running)).with(|i| i.unprobed = true).expect(&[], SiteReason::Training);
    Case::new(&unknown, None).with(|i| i.unprobed = true).expect(&[], SiteReason::Offered);
    Case::new(&unknown, Some(&running)).expect(&[stop("t-1")], SiteReason::NetworkPolicyNotEnforced);
    Case::new(&unknown, None).with(|i| (i.unprobed, i.has_result) = (true, true)).expect(&[], SiteReason::Ready);
}

#[test]
fn ends_of_a_try() {
    let after = |states: &[(Mode, TryState)], acts: &[Act], reason| {
        let task = tries(states);
        Case::new(&Decision::Allowed, Some(&task)).expect(acts, reason)
    };
    // Bad data is reported once, in the trainer's words, and never tried again.
    let plan = after(&[full(End::Invalid("scan.nii.gz: truncated".into()))], &[], SiteReason::InvalidData);
    assert_eq!(plan.verdict.unwrap().message.as_deref(), Some("scan.nii.gz: truncated"));
    after(&[full(End::OutOfMemory("oom".into()))], &[start(2, Mode::Full)], SiteReason::OutOfMemory);
    after(&[full(End::NoResult)], &[start(2, Mode::Full)], SiteReason::Queued);
    after(&[failed(), failed()], &[start(3, Mode::Full)], SiteReason::Queued);
    after(&[failed(), failed(), failed()], &[], SiteReason::Failed);
    let plan = after(&[failed(), failed(), full(End::OutOfMemory("oom".into()))], &[], SiteReason::Failed);
    assert!(plan.verdict.unwrap().message.unwrap().contains("oom"));
    after(&[full(End::Deadline)], &[], SiteReason::Failed);
}

/// A finished training is delivered, never made again: hours of eight GPUs, and a hospital that misses the round.
#[test]
fn a_result_on_the_volume_gets_deliver_only_tries() {
    let after = |task: &TaskSeen, acts: &[Act], reason| Case::new(&Decision::Allowed, Some(task)).expect(acts, reason);
    let (deliver, train) = (|number| [start(number, Mode::Deliver)], |number| [start(number, Mode::Full)]);
    let undelivered = full(End::Undelivered);
    after(&tries(std::slice::from_ref(&undelivered)), &deliver(2), SiteReason::Training);
    // A pod that could not deliver says nothing against the result, up to a limit; then a person must look.
    let mut states = vec![undelivered];
    for (number, end) in [(3, End::Undelivered), (4, End::OutOfMemory("oom".into()))] {
        states.push(delivering(end));
        after(&tries(&states), &deliver(number), SiteReason::Training);
    }
    states.push(delivering(End::Undelivered));
    let plan = after(&tries(&states), &[], SiteReason::Failed);
    assert!(plan.verdict.unwrap().message.unwrap().contains("on the work claim"));
    // A node that went may have taken a finished try with it, and so may a Job that somebody removed.
    let lost = full(End::Lost("node dgx-1 does not answer".into()));
    after(&tries(std::slice::from_ref(&lost)), &deliver(2), SiteReason::Queued);
    after(&TaskSeen { last_try: 2, ..TaskSeen::default() }, &deliver(3), SiteReason::Queued);
    after(&TaskSeen { last_try: 2, ..tries(&[failed()]) }, &deliver(3), SiteReason::Queued);
    // There was nothing: it is made, and the reason is why there was nothing.
    let plan = after(&tries(&[lost, delivering(End::NoResult)]), &train(3), SiteReason::Queued);
    assert!(plan.verdict.unwrap().message.unwrap().contains("dgx-1"));
    let worn = tries(&[failed(), failed(), full(End::Undelivered), delivering(End::NoResult)]);
    after(&worn, &[], SiteReason::Failed);
    // Deliveries are counted anew for a result that was made anew.
    let many = [full(End::Undelivered), delivering(End::Undelivered), delivering(End::Undelivered)];
    let anew = [&many[..], &[delivering(End::NoResult), full(End::Undelivered), delivering(End::Undelivered)]].concat();
    after(&tries(&anew), &deliver(7), SiteReason::Training);
}

/// The Job of a lost pod makes a new one when its node's object goes; that one would work in the newer try's folder.
#[test]
fn a_lost_try_is_stopped_before_the_next_begins() {
    let mut task = tries(&[full(End::Lost("node".into()))]);
    task.tries[0].over = false;
    let acts = [stop("t-1"), start(2, Mode::Deliver)];
    Case::new(&Decision::Allowed, Some(&task)).expect(&acts, SiteReason::Queued);
    Case::new(&refused(SiteReason::DeniedByPolicy), Some(&task)).expect(&acts[..1], SiteReason::DeniedByPolicy);
}

/// A straggler that trains on while the round evaluates would keep the GPUs that the evaluation waits for, and no veto
/// would reach it.
#[test]
fn what_the_round_no_longer_asks_for_is_stopped_whatever_becomes_of_this_part() {
    let training = tries(&[failed(), RUNNING]).tries;
    let evaluate = |i: &mut Inputs<'_>| i.kind = TaskKind::Evaluate;
    let with = |decision: &Decision, acts: &[Act], reason: SiteReason| {
        let case = Case::new(decision, None).with(evaluate);
        let inputs = Inputs { others: &training, ..case.inputs };
        Case { inputs }.expect(acts, reason);
    };
    with(&Decision::Allowed, &[stop("t-2"), Act::CreateTask], SiteReason::Queued);
    with(&refused(SiteReason::DeniedByPolicy), &[stop("t-2")], SiteReason::DeniedByPolicy);
    with(&refused(SiteReason::AwaitingRoster), &[stop("t-2")], SiteReason::AwaitingRoster);
}

/// An admission policy's no is the hospital's no: it is told as such, with the server's words, and not asked every turn.
#[test]
fn what_the_api_server_refuses_is_not_made_and_is_said() {
    let empty = TaskSeen::default();
    for task in [None, Some(&empty)] {
        let case = Case::new(&Decision::Allowed, task).with(|i| i.refused = Some("no GPUs at night"));
        let plan = case.expect(&[], SiteReason::DeniedByPolicy);
        assert_eq!(plan.verdict.unwrap().message.as_deref(), Some("no GPUs at night"));
    }
    // What runs already was let in, and a deadline that passes says why nothing ran.
    let running = tries(&[RUNNING]);
    Case::new(&Decision::Allowed, Some(&running)).with(|i| i.refused = Some("no")).expect(&[], SiteReason::Training);
    let late = |i: &mut Inputs<'_>| (i.refused, i.deadline) = (Some("no GPUs at night"), EARLIER.parse().unwrap());
    let plan = Case::new(&Decision::Allowed, None).with(late).expect(&[], SiteReason::Failed);
    assert!(plan.verdict.unwrap().message.unwrap().contains("no GPUs at night"));
}

#[test]
fn a_delivered_result_is_ready_whatever_its_pod_does() {
    let task = tries(&[failed()]);
    let done = |kind, reason| {
        Case::new(&Decision::Allowed, Some(&task)).with(|i| (i.has_result, i.kind) = (true, kind)).expect(&[], reason);
    };
    done(TaskKind::Train, SiteReason::Ready);
    done(TaskKind::Evaluate, SiteReason::Evaluated);
    // Also past the deadline, without its spec, and with the task removed by hand.
    Case::new(&Decision::SpecNeeded, None)
        .with(|i| (i.has_result, i.deadline) = (true, EARLIER.parse().unwrap()))
        .expect(&[], SiteReason::Ready);
    Case::new(&refused(SiteReason::DeniedByPolicy), None)
        .with(|i| i.has_result = true)
        .expect(&[], SiteReason::DeniedByPolicy);
}

#[test]
fn a_rejected_result_is_final_and_a_final_state_survives_a_restart() {
    let task = tries(&[RUNNING]);
    Case::new(&Decision::Allowed, Some(&task))
        .with(|i| i.rejected = Some("NaN"))
        .expect(&[stop("t-1")], SiteReason::Rejected);
    // After a restart the pods may be gone; the status remembers.
    let ended = TaskSeen { ended: Some((SiteReason::InvalidData, "bad".into())), last_try: 1, ..TaskSeen::default() };
    let plan = Case::new(&Decision::Allowed, Some(&ended)).expect(&[], SiteReason::InvalidData);
    assert_eq!(plan.verdict.unwrap().message.as_deref(), Some("bad"));
    Case::new(&Decision::SpecNeeded, Some(&ended)).expect(&[], SiteReason::InvalidData);
}

#[test]
fn the_deadline_stops_the_job_and_says_what_it_waited_for() {
    let overdue = |i: &mut Inputs<'_>| i.deadline = EARLIER.parse().unwrap();
    let stuck = tries(&[(Mode::Full, TryState::Waiting(Some("0/1 nodes".into())))]);
    let plan = Case::new(&Decision::Allowed, Some(&stuck)).with(overdue).expect(&[stop("t-1")], SiteReason::Failed);
    assert!(plan.verdict.unwrap().message.unwrap().contains("0/1 nodes"));
    Case::new(&Decision::Allowed, None).with(overdue).expect(&[], SiteReason::Failed);
}

/// A tombstone cleans up and falls silent; mere absence does not.
#[test]
fn a_tombstone_removes_everything_and_an_orphan_runs_to_its_deadline() {
    let running = tries(&[RUNNING]);
    let all = [Act::DeleteTask, Act::Forget];
    Case::new(&Decision::Allowed, Some(&running)).with(|i| i.item = ItemState::Cancelled).expect(&all, None);
    Case::new(&Decision::Allowed, None).with(|i| i.item = ItemState::Cancelled).expect(&[Act::Forget], None);
    let gone = TaskSeen { deleting: true, ..tries(&[RUNNING]) };
    Case::new(&Decision::Allowed, Some(&gone)).with(|i| i.item = ItemState::Cancelled).expect(&[Act::Forget], None);
    Case::new(&Decision::Allowed, Some(&running))
        .with(|i| i.item = ItemState::Orphaned)
        .expect(&[], SiteReason::Training);
    Case::new(&Decision::Allowed, Some(&running))
        .with(|i| (i.item, i.deadline) = (ItemState::Orphaned, EARLIER.parse().unwrap()))
        .expect(&all, None);
}
