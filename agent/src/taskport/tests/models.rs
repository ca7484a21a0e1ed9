//! What the pod of a model is given.

use super::*;

#[tokio::test]
async fn a_deployment_fetches_its_release_and_model_and_delivers_nothing() {
    let setup = setup(TaskKind::Train).await;
    let release = json!({
        "study": "research/hippocampus", "studyUID": "s", "round": 1, "model": setup.manifest.digest(),
        "specDigest": Digest::of(b"spec"), "baseModel": Digest::of(b"base"), "trainerImage": "i", "config": {},
        "contributors": ["alder"], "dice": "0.9", "evidence": [], "attestation": {"keyID": "", "signature": ""},
    });
    let release: ModelReleaseSpec = serde_json::from_value(release).unwrap();
    let bytes = consilium_federation::digest::canonical_json(&release);
    let mut hospital = setup.hospital.clone();
    let mut objects = (*hospital.objects).clone();
    objects.insert(Digest::of(&bytes), bytes.clone().into());
    hospital.objects = Arc::new(objects);
    let work = consilium_federation::assignment::DeployWork {
        release: "hippocampus-r1".into(),
        release_digest: Digest::of(&bytes),
        model: setup.manifest.digest(),
        stage: consilium_federation::ladder::Stage::Shadow,
        approvals: vec![],
        plan: None,
        stage_approvals: Vec::new(),
    };
    let entry = DeployEntry { promotion_uid: "p".into(), state: ItemState::Active, work };
    setup.desk.set_deployments(BTreeMap::from([("deployment".to_owned(), entry)]));
    let grant = Grant::Deployment { uid: "deployment".into(), name: "hippocampus-r1".into() };
    setup.state.put_token(Digest::of(b"serve"), &grant).unwrap();
    setup.show("serve");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let args = PortArgs { server: format!("https://{}", listener.local_addr().unwrap()), ..setup.args.clone() };
    let identity = setup.desk.identity(&setup.state, &args.server).unwrap();
    let port = Port::new(setup.state.clone(), setup.desk.clone(), args.root.join("in"), hospital);
    let stop = setup.shutdown.clone();
    tokio::spawn(async move { serve(listener, &identity, port, stop).await });
    fetch(&args, &PACE).await.unwrap();
    assert_eq!(fs::read(args.root.join("release.json")).unwrap(), bytes);
    assert_eq!(fs::read(args.root.join("manifest.json")).unwrap(), setup.manifest.to_bytes());
    assert!(args.root.join("model.safetensors").exists());
    setup.trained([0.0; 3]);
    assert!(refused(deliver(&args, &PACE).await).contains("delivers nothing"));
}
