//! What becomes of the link when one of its loops fails.

use super::*;

/// A disk that fails takes one loop with it. Alone, the others would keep the hospital "connected", and none of its
/// updates would ever leave: nobody would know until rounds are lost.
#[tokio::test]
async fn a_loop_that_fails_ends_the_link_and_with_it_the_agent() {
    for (table, key) in [("meta", "assignment"), ("uploads", "round")] {
        let world = World::new().await;
        let agent = world.agent(None);
        until("the connection", agent.status.clone(), |status| *status == LinkStatus::Connected).await;
        agent.ctx.state.damage(table, key);
        world.publish(1, vec![asked(1)]);
        let ended = tokio::time::timeout(LIMIT, agent.run).await;
        let error = ended.expect("the link goes on without one of its loops").unwrap().unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
