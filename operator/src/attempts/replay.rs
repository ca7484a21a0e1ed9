//! From the journal and the round's state to the machine at the open step.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use consilium_crds::roster::site_id;
use consilium_federation::round::ProtocolStep;
use consilium_federation::{Digest, SiteName};
use consilium_secagg::hub::Hub as Machine;
use consilium_secagg::wire::Message;

use super::{AttemptError, Entry, Inputs, Plan, Refused, take};
use crate::store::BlobStore;

/// Messages of one step by hospital.
type Messages = BTreeMap<SiteName, Bytes>;

const STEPS: [ProtocolStep; 5] =
    [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree, ProtocolStep::Unmask];

/// The machine at the plan's step, and what hospitals start from, in the store.
pub(super) async fn replay(store: &BlobStore, plan: &Plan) -> Result<Entry, AttemptError> {
    let mut journal = Vec::new();
    for step in STEPS.into_iter().filter(|step| *step <= plan.step) {
        journal.push((step, messages(store, plan, step).await?));
    }
    let built = {
        let plan = plan.clone();
        tokio::task::spawn_blocking(move || build(&plan, journal)).await.map_err(|_| AttemptError::Stopped)??
    };
    let Built { machine, heard, objects } = built;
    let mut made = BTreeMap::new();
    let inputs = match objects {
        Objects::Nothing => Inputs::Nothing,
        Objects::Same(bytes) => Inputs::Same(store.put_object(bytes.into()).await?),
        Objects::Each(each) => {
            made = each.iter().map(|(site, (_, bytes))| (site.clone(), *bytes)).collect();
            Inputs::Each(each.into_iter().map(|(site, (digest, _))| (site, digest)).collect())
        }
    };
    Ok(Entry { machine, step: plan.step, inputs, made, heard })
}

/// The messages of a step that count: of a closed one those that the round's state names, of the open one all.
async fn messages(store: &BlobStore, plan: &Plan, step: ProtocolStep) -> Result<Messages, AttemptError> {
    let named = match step {
        ProtocolStep::Advertise => Some(&plan.advertised),
        ProtocolStep::Share => Some(&plan.dealt),
        ProtocolStep::Upload => Some(&plan.survivors),
        // Any t signatures and any t replies are as good as any other.
        ProtocolStep::Agree | ProtocolStep::Unmask | ProtocolStep::Sum => None,
    };
    let closed = step < plan.step;
    let (sites, required) = match named.filter(|_| closed) {
        Some(sites) => (sites.clone(), true),
        None => (store.messages_of(&plan.round_uid, plan.attempt.attempt, step).await?, false),
    };
    let mut messages = Messages::new();
    for site in sites {
        match store.message(&plan.key(&site), step).await? {
            Some(content) => drop(messages.insert(site, content)),
            None if required => return Err(AttemptError::Lost { site, step }),
            None => {}
        }
    }
    Ok(messages)
}

struct Built {
    machine: Machine,
    heard: BTreeSet<SiteName>,
    objects: Objects,
}

enum Objects {
    Nothing,
    Same(Vec<u8>),
    /// Digest and bytes of what is made for each hospital when it asks.
    Each(BTreeMap<SiteName, (Digest, usize)>),
}

/// Plays the journal into a fresh machine. Pure; takes milliseconds to a second.
fn build(plan: &Plan, journal: Vec<(ProtocolStep, Messages)>) -> Result<Built, AttemptError> {
    let mut machine = Machine::open(plan.attempt.clone(), plan.roster.clone())?;
    let mut objects = Objects::Nothing;
    let mut heard = BTreeSet::new();
    for (step, messages) in journal {
        heard = give(&mut machine, step, messages)?;
        if step < plan.step {
            objects = close(&mut machine, step, plan)?;
        }
    }
    Ok(Built { machine, heard, objects })
}

/// Gives all messages of a step; answers whose they were.
fn give(machine: &mut Machine, step: ProtocolStep, messages: Messages) -> Result<BTreeSet<SiteName>, AttemptError> {
    let mut heard = BTreeSet::new();
    for (site, content) in messages {
        match take(machine, step, &site, &content) {
            Ok(()) => drop(heard.insert(site)),
            Err(Refused::Wire(source)) => return Err(AttemptError::Unreadable { site, step, source }),
            Err(Refused::Protocol(error)) => return Err(error.into()),
            Err(Refused::Store(error)) => return Err(error.into()),
            Err(Refused::NotOpen { .. } | Refused::OutOfStep { .. }) => {}
        }
    }
    Ok(heard)
}

/// Ends a step; answers what the next one starts from.
fn close(machine: &mut Machine, step: ProtocolStep, plan: &Plan) -> Result<Objects, AttemptError> {
    Ok(match step {
        ProtocolStep::Advertise => Objects::Same(machine.close_adverts()?.to_bytes()),
        ProtocolStep::Share => {
            machine.close_shares()?;
            // One at a time: each holds a header of every dealer, which holds a digest for every recipient.
            let bundle = |site: &SiteName| {
                let bytes = machine.bundle_for(&site_id(site))?.to_bytes();
                Ok((site.clone(), (Digest::of(&bytes), bytes.len())))
            };
            Objects::Each(plan.dealt.iter().map(bundle).collect::<Result<_, AttemptError>>()?)
        }
        ProtocolStep::Upload => {
            let complete = plan.survivors.iter().map(site_id).collect();
            Objects::Same(machine.close_uploads(&complete)?.to_bytes())
        }
        ProtocolStep::Agree => Objects::Same(machine.close_agreement()?.to_bytes()),
        ProtocolStep::Unmask | ProtocolStep::Sum => {
            machine.close_unmasking()?;
            Objects::Nothing
        }
    })
}
