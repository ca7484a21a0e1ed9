//! The hub is the attacker. Every test is one attack of the literature or of practice; it ends in a refusal with a
//! reason, and what the hub saw up to then is the same whatever the victim's update was.
//!
//! In `opening` no update is bound yet when most attacks end, so what the hub saw cannot depend on it: there the refusal
//! is all that is shown.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]
#[path = "../common/mod.rs"]
mod common;

mod agreeing;
mod opening;
mod repeating;

use consilium_secagg::wire::Message;

use common::{FLOORS, Moment, Trouble, World};
use consilium_secagg::advert::AdvertList;
use consilium_secagg::client::{Client, ClientError, Guard};
use consilium_secagg::hub::Hub;

/// The hospital that the hub is after.
const VICTIM: usize = 1;

/// What the hub saw, apart from masked vectors and their digests (`tests/noise.rs` is about those).
type View = Vec<Vec<u8>>;

/// Runs an attack against two updates of the victim: the view must be the same.
fn attack(n: usize, run: impl Fn(&mut World) -> View) {
    let view_of = |update: f32| {
        let mut world = World::new(n, 40, 99);
        world.sites[VICTIM].update.fill(update);
        run(&mut world)
    };
    let (one, other) = (view_of(1.5), view_of(-0.25));
    assert!(!one.is_empty());
    assert!(one == other, "what the hub sees depends on the victim's update");
}

fn client(world: &mut World, i: usize) -> &mut Client {
    world.sites[i].client.as_mut().unwrap()
}

/// The victim's answer to a list of adverts.
fn answer(world: &mut World, list: &AdvertList) -> Result<Vec<u8>, ClientError> {
    let list = list.clone();
    world
        .act(VICTIM, Trouble::Nothing, |client, site, roster| {
            let (key, history) = (site.key.clone(), site.history.clone());
            client.adverts(&list, &key, Guard { roster, floors: &FLOORS, history: &history }, &mut site.rng)
        })
        .map(|m| m.to_bytes())
}

fn adverts(world: &mut World, hub: &mut Hub) -> AdvertList {
    world.advance(hub, Moment::BeforeShares);
    hub.advert_list().unwrap().clone()
}

fn view(messages: &[&dyn Fn() -> Vec<u8>]) -> View {
    messages.iter().map(|m| m()).collect()
}
