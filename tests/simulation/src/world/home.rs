//! The end of a schedule: everything works again, and the study must come to its end within its own times.

use super::*;
use crate::schedule::Setting;

/// Looks at everything until the study must be over. Each lets some time go by.
const LOOKS: usize = 400;

impl World {
    /// Everything works again.
    async fn mend(&mut self) -> Result<(), Violation> {
        self.full.store(false, Ordering::SeqCst);
        {
            let mut api = lock(&self.api);
            api.fate = None;
            api.study.spec.suspend = None;
        }
        self.old = None;
        for index in 0..HOSPITALS {
            let hospital = &mut self.hospitals[index];
            (hospital.lies, hospital.trains) = (None, 10);
            hospital.up |= self.mutant != Some(Mutant::OneWayLeave);
            hospital.fates.clear();
            self.disk_full(index, false).await?;
            self.connect(index);
            self.veto(index, false);
        }
        // A sum that waits for a full volume waits by another clock.
        self.kill_hub().await
    }

    fn ended(&self) -> bool {
        let api = lock(&self.api);
        let Some(status) = &api.study.status else { return false };
        let is = |of: &str| status_of(&status.conditions, of);
        is(STALLED) == Some("True") || is(SUCCEEDED).is_some_and(|status| status != "Unknown")
    }

    /// What is not there yet, in the end.
    fn rest(&self) -> Option<String> {
        if !self.ended() {
            return Some("the study has not ended".into());
        }
        let open = {
            let api = lock(&self.api);
            api.rounds
                .values()
                .any(|(_, r)| r.status.as_ref().and_then(|s| s.round.as_ref()).is_none_or(|state| !state.is_over()))
        };
        if open {
            return Some("a round has not ended".into());
        }
        self.hospitals.iter().find_map(|hospital| {
            let name = NAMES[hospital.index];
            let agent = hospital.agent.as_ref()?;
            if hospital.cluster.tasks() > 0 {
                return Some(format!("{name} still has tasks"));
            }
            match agent.ctx.state.open_attempts() {
                Ok(open) if open.is_empty() => {}
                other => return Some(format!("{name} has open attempts: {other:?}")),
            }
            for part in ["updates", "masked"] {
                let folder = hospital.folder.join("state").join(part);
                let first = std::fs::read_dir(&folder).ok().and_then(|mut files| files.next());
                if let Some(Ok(file)) = first {
                    return Some(format!("{name} still holds {part}/{}", file.file_name().to_string_lossy()));
                }
            }
            None
        })
    }

    /// Until everything is over; fails when it does not come to that.
    pub(super) async fn home(&mut self, setting: Setting) -> Result<(), Violation> {
        self.mend().await?;
        let last = {
            let api = lock(&self.api);
            let current = api.study.status.as_ref().and_then(|status| status.current_round);
            let made = api.rounds.values().map(|(_, round)| round).chain(&api.gone).map(|round| round.spec.number);
            made.chain(current).max()
        };
        let begun = self.clock.elapsed();
        let mut rest = None;
        for n in 0..LOOKS {
            self.round_trip().await?;
            self.look().await?;
            rest = self.rest();
            if rest.is_none() {
                break;
            }
            // Small steps first; then large ones, to what only time brings.
            if n % 24 == 23 {
                self.clock.forward(3_600_000);
            }
        }
        if let Some(rest) = rest {
            let hours = (self.clock.elapsed() - begun) / 3_600_000;
            let api = lock(&self.api);
            let rounds: Vec<String> = (api.rounds.values())
                .map(|(_, r)| format!("{:?}", r.status.as_ref().and_then(|s| s.round.as_ref())))
                .collect();
            let status = api.study.status.as_ref().map(|status| &status.conditions);
            let what =
                format!("{hours} h after all works ({setting:?}): {rest}; rounds {rounds:#?}; study {status:#?}");
            return Err(broken("what works ends", what));
        }
        self.fruitful(last.unwrap_or(0))?;
        self.left_behind().await
    }

    /// A round that began when everything worked has made a model, with everybody in it.
    fn fruitful(&self, last: u32) -> Result<(), Violation> {
        // A hospital that was set back, or gave its shares in a round that came to nothing, may have to stay out.
        if self.hospitals.iter().any(|hospital| hospital.restored) {
            return Ok(());
        }
        let api = lock(&self.api);
        let all = api.rounds.values().map(|(_, round)| round).chain(&api.gone);
        for round in all.filter(|round| round.spec.number > last) {
            let state = round.status.as_ref().and_then(|status| status.round.as_ref());
            let inside = state.map_or(0, |state| state.sites.iter().filter(|site| site.contributed).count());
            if inside < HOSPITALS {
                let what =
                    format!("round {} began when all worked and has {inside} in it: {state:#?}", round.spec.number);
                return Err(broken("what works takes part", what));
            }
        }
        Ok(())
    }

    /// The store holds nothing of rounds that are over.
    async fn left_behind(&self) -> Result<(), Violation> {
        let mut left = self.objects.list(Some(&Path::from("rounds")));
        match left.next().await {
            Some(Ok(found)) => Err(broken("nothing is left behind", format!("the store holds {}", found.location))),
            _ => Ok(()),
        }
    }
}
