//! What lies in a task's folders: whose result it is, and what of it is kept.

use super::*;
use crate::courier::{EXIT_DELIVERED, EXIT_NO_RESULT};

/// A pod that was drained while it delivered is replaced within its try: eight GPUs must not train again what lies there.
#[tokio::test]
async fn fetch_hands_over_a_whole_result_and_starts_nothing() {
    let setup = setup(TaskKind::Train).await;
    fetch(&setup.args, &PACE).await.unwrap();
    let task = fs::read(setup.args.root.join("task.json")).unwrap();
    setup.trained([0.5, -0.5, 0.25]);
    fs::write(setup.args.root.join("task.json"), task).unwrap();
    // One that was only half written is made again.
    let manifest = fs::read(setup.out().join("MANIFEST")).unwrap();
    fs::write(setup.out().join("MANIFEST"), b"{").unwrap();
    fetch(&setup.args, &PACE).await.unwrap();
    assert!(!setup.out().exists() && setup.state.update(ROUND).unwrap().is_none());

    let task = fs::read(setup.args.root.join("task.json")).unwrap();
    setup.trained([0.5, -0.5, 0.25]);
    fs::write(setup.args.root.join("task.json"), task).unwrap();
    fs::write(setup.out().join("MANIFEST"), manifest).unwrap();
    let result = fetch(&setup.args, &PACE).await;
    assert!(matches!(result, Err(CourierError::Delivered)), "{result:?}");
    assert_eq!(result.unwrap_err().exit_code(), EXIT_DELIVERED);
    assert!(setup.state.update(ROUND).unwrap().is_some());
}

/// A pod of an old try may come back with its node: it must not empty the folder in which the newer one works.
#[tokio::test]
async fn fetch_of_a_replaced_try_touches_nothing() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.0; 3]);
    setup.grant("token-4", 4);
    setup.show("token-3");
    assert!(refused(fetch(&setup.args, &PACE).await).contains("try 3 has been replaced"));
    assert!(setup.out().join("MANIFEST").exists(), "an undelivered result of the newer try");
}

/// The score of the study's own making lies where `deliver` does not look, and what the study calls its task is not asked.
#[tokio::test]
async fn a_score_is_taken_from_the_evaluators_folder_alone() {
    let mut setup = setup(TaskKind::Evaluate).await;
    let own = setup.args.root.with_file_name("results");
    fs::create_dir_all(&own).unwrap();
    setup.args.results = Some(own.clone());
    fetch(&setup.args, &PACE).await.unwrap();
    assert_eq!(read::<TaskFile>(&own.join("task.json")), read(&setup.args.root.join("task.json")));
    let score = |dice: f64| {
        let class = json!({"label": 1, "dice": dice, "hd95Mm": null, "assdMm": null});
        json!({"cases": 4, "classes": [class]}).to_string().into_bytes()
    };
    // As a hostile image would leave it, with a task that it would rather have been given.
    setup
        .result(TaskKind::Train, &[("score.json", score(1.0)), ("progress.json", br#"{"step": 1, "of": 1}"#.to_vec())]);
    let waiting = {
        let args = setup.args.clone();
        tokio::spawn(async move { deliver(&args, &PACE).await })
    };
    while setup.desk.progress(TASK).is_none() {
        tokio::task::yield_now().await;
    }
    assert!(setup.state.score(ROUND).unwrap().is_none() && !waiting.is_finished());
    // The evaluator's own.
    let root = std::mem::replace(&mut setup.args.root, own.clone());
    setup.result(TaskKind::Evaluate, &[("score.json", score(0.9))]);
    setup.args.root = root;
    waiting.await.unwrap().unwrap();
    let stored = setup.state.score(ROUND).unwrap().unwrap();
    assert_eq!(stored.score.mean_dice(), Some(0.9));
    for folder in [&own, &setup.args.root] {
        assert!(fs::read_dir(folder).unwrap().next().is_none(), "predictions show patients: {}", folder.display());
    }
}

/// A deliver-only pod that finds nothing must say so at once, or the next training waits for it.
#[tokio::test]
async fn deliver_says_that_there_is_nothing() {
    let setup = setup(TaskKind::Train).await;
    let result = deliver(&setup.args, &PACE).await;
    assert!(matches!(result, Err(CourierError::NoResult)), "nothing was ever fetched: {result:?}");
    fetch(&setup.args, &PACE).await.unwrap();
    setup.know(TaskKind::Train, Some(3));
    assert_eq!(deliver(&setup.args, &PACE).await.unwrap_err().exit_code(), EXIT_NO_RESULT);
}
