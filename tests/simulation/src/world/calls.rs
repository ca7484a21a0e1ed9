//! What becomes of a hospital's call.

use consilium_federation::Digest;
use consilium_federation::round::SiteReason;
use consilium_operator::gateway;
use consilium_proto::v1::hub_server::Hub as _;
use tonic::{Request, Status};

use super::World;
use crate::check::{Violation, broken};
use crate::schedule::Fate;
use crate::study::site;
use crate::wire::{Answer, Call, Packet};

fn lost() -> Status {
    Status::unavailable("the connection was lost")
}

impl World {
    /// Answers a call as its fate has it; `false` when the agent that called was killed.
    pub(super) async fn answer(&mut self, packet: Packet) -> Result<bool, Violation> {
        let Packet { site: index, mut call, reply } = packet;
        let fate = self.fate(index);
        if fate == Some(Fate::CrashBefore) {
            return Ok(false);
        }
        let protocol = matches!(call, Call::Begin(_) | Call::Chunk(_) | Call::Message(_));
        if protocol && self.hospitals[index].refuses {
            let what = format!("{} says no and sends {call:?}", site(index));
            return Err(broken("nothing leaves a hospital that says no", what));
        }
        self.says_one_thing(index, &call)?;
        if !self.hospitals[index].up || fate == Some(Fate::LoseRequest) {
            let _ = reply.send(Err(lost()));
            return Ok(true);
        }
        match fate {
            Some(Fate::HubFirst) => Box::pin(self.hub_turn()).await?,
            Some(Fate::HubCrash) => {
                self.kill_hub().await?;
                let _ = reply.send(Err(lost()));
                return Ok(true);
            }
            _ => {}
        }
        if let (Call::Report(report), Some(how)) = (&mut call, self.hospitals[index].lies) {
            lie(report, how);
        }
        if fate == Some(Fate::Twice) {
            let _ = self.serve(index, call.clone()).await;
        }
        let answer = self.serve(index, call).await;
        if self.hub.as_ref().is_some_and(|hub| hub.disk.is_dead()) {
            self.kill_hub().await?;
            let _ = reply.send(Err(lost()));
            return Ok(true);
        }
        match fate {
            Some(Fate::CrashAfter) => return Ok(false),
            Some(Fate::LoseReply) => drop(reply.send(Err(lost()))),
            _ => drop(reply.send(answer)),
        }
        Ok(true)
    }

    /// What a hospital says in a step, it says again or not at all.
    fn says_one_thing(&mut self, index: usize, call: &Call) -> Result<(), Violation> {
        let (key, said) = match call {
            Call::Message(m) => ((index, m.round_uid.clone(), m.attempt, m.step.clone()), Digest::of(&m.content)),
            Call::Begin(m) => ((index, m.round_uid.clone(), m.attempt, "Upload".to_owned()), Digest::of(&m.manifest)),
            _ => return Ok(()),
        };
        let known = *self.said.entry(key.clone()).or_insert(said);
        if known != said && !self.hospitals[index].restored {
            return Err(broken("nobody says two things", format!("{} said another thing in {key:?}", site(index))));
        }
        Ok(())
    }

    fn fate(&mut self, index: usize) -> Option<Fate> {
        let fates = &mut self.hospitals[index].fates;
        let due = fates.iter().position(|(n, _)| *n == 0).map(|at| fates.remove(at).1);
        fates.iter_mut().for_each(|(n, _)| *n = n.saturating_sub(1));
        due
    }

    /// The hub's own service.
    async fn serve(&mut self, index: usize, call: Call) -> Result<Answer, Status> {
        let Some(hub) = &self.hub else { return Err(lost()) };
        let site = site(index);
        hub.hub.contact(&site, self.clock.now());
        fn by<T>(caller: gateway::Caller, message: T) -> Request<T> {
            let mut request = Request::new(message);
            request.extensions_mut().insert(caller);
            request
        }
        let caller = hub.caller(&site);
        let answer = match call {
            Call::Report(message) => {
                hub.gateway.report(by(caller, message)).await.map(|r| Answer::Report(r.into_inner()))
            }
            Call::Begin(message) => {
                hub.gateway.begin_upload(by(caller, message)).await.map(|r| Answer::Begin(r.into_inner()))
            }
            Call::Chunk(message) => {
                hub.gateway.put_chunk(by(caller, message)).await.map(|r| Answer::Chunk(r.into_inner()))
            }
            Call::Message(message) => {
                hub.gateway.put_message(by(caller, message)).await.map(|r| Answer::Message(r.into_inner()))
            }
            Call::Object(message) => gateway::object(&hub.hub, &hub.metrics, &site, &message.digest)
                .await
                .map(|content| Answer::Object(consilium_proto::v1::GetObjectReply { content })),
        };
        hub.hear(&site);
        answer
    }
}

/// What a hospital that lies says of where it is.
fn lie(report: &mut consilium_proto::v1::ReportRequest, how: u8) {
    match how {
        0 => report.rounds.iter_mut().for_each(|round| round.reason = format!("{:?}", SiteReason::Ready)),
        1 => report.rounds.clear(),
        _ => report.rounds.iter_mut().for_each(|round| round.reason = format!("{:?}", SiteReason::Evaluated)),
    }
}
