//! What the link makes of the hub's clock.

use consilium_federation::clock::OtherClock;
use jiff::SignedDuration;

use super::*;

/// The agent's clock stands at 2026-01-01T00:00:00Z here.
const HUB: &str = "2025-12-31T19:00:00Z";

/// A hospital whose clock is five hours ahead: what the hub no longer mentions runs on until the hub's deadline by the hub's
/// clock, and the hub hears what the agent's clock shows.
#[tokio::test]
async fn the_hub_s_deadlines_are_read_by_the_hub_s_clock() {
    let world = World::new().await;
    *world.hub.time.lock().unwrap() = HUB.into();
    let agent = world.agent(None);
    let mut item = asked(1);
    let Work::Round(work) = &mut item.work else { panic!("not a round") };
    // An hour from now at the hub, and four hours ago here.
    work.deadline = "2025-12-31T20:00:00Z".parse().unwrap();
    world.publish(1, vec![item.clone()]);
    until("the work", agent.ctx.desired.clone(), |desired| desired.revision == 1).await;
    // Either from the work or, less half of its way, from the answer to a report.
    let OtherClock::Ahead(by) = agent.ctx.facts.hub_clock() else { panic!("not heard") };
    assert!((by + SignedDuration::from_hours(5)).unsigned_abs() < LIMIT, "{by}");
    world.publish(2, vec![]);
    until("the hub no longer mentions it", agent.ctx.desired.clone(), |desired| desired.revision == 2).await;
    let kept: Vec<ItemState> = agent.ctx.desired.borrow().items.iter().map(|item| item.state).collect();
    assert_eq!(kept, [ItemState::Orphaned], "an orphan runs to its deadline");
    until("a report", world.hub.reports.subscribe(), |reports| !reports.is_empty()).await;
    let said = world.hub.reports.borrow()[0].agent_time.clone();
    assert_eq!(consilium_proto::clock(&said), Some(agent.ctx.now()));
}

/// A hub of a version before says no time: its deadlines are taken as they stand, as before.
#[tokio::test]
async fn a_hub_that_says_no_time_is_taken_at_its_word() {
    let world = World::new().await;
    let agent = world.agent(None);
    world.publish(1, vec![asked(1)]);
    until("the work", agent.ctx.desired.clone(), |desired| desired.revision == 1).await;
    assert_eq!(agent.ctx.facts.hub_clock(), OtherClock::Unsaid);
}
