use super::*;

fn run_config() -> RunConfig<'static> {
    RunConfig { entrypoint: vec!["/bin/x".into()], environment: vec![], annotations: vec![] }
}

fn entries(file: &Path) -> Vec<Entry> {
    vec![
        Entry { path: "usr/bin/x".into(), mode: 0o755, content: Content::File(file.to_owned()) },
        Entry { path: "etc/passwd".into(), mode: 0o644, content: Content::Text("root".into()) },
    ]
}

fn build(order: impl Fn(&mut Vec<Entry>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    fs::write(&file, "program").unwrap();
    let store = Store::new(dir.path().join("images")).unwrap();
    let mut entries = entries(&file);
    order(&mut entries);
    let layer = store.layer(&entries).unwrap();
    store.image("x", &[layer], &run_config(), |digest| format!("registry/x@{digest}")).unwrap()
}

/// Studies and policies name images by digest: two builds of one commit must agree, wherever and whenever they ran.
#[test]
fn the_digest_depends_on_nothing_but_the_content() {
    assert_eq!(build(|_| ()), build(|entries| entries.reverse()));
    assert_ne!(build(|_| ()), build(|entries| entries[0].mode = 0o555));
}

/// containerd refuses a layout whose blobs are not what their names say.
#[test]
fn every_blob_is_named_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    fs::write(&file, vec![7; 100_000]).unwrap();
    let store = Store::new(dir.path().join("images")).unwrap();
    let layer = store.layer(&entries(&file)).unwrap();
    let digest = store.image("x", &[layer], &run_config(), |digest| format!("registry/x@{digest}")).unwrap();
    let layout = store.layout("x");
    let blobs: Vec<_> = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(blobs.len(), 3, "layer, config, manifest");
    for blob in blobs {
        assert_eq!(hex::encode(Sha256::digest(fs::read(&blob).unwrap())), blob.file_name().unwrap().to_str().unwrap());
    }
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], digest);
}

/// A layer without its folders gets root-only ones from some unpackers, and the program cannot be reached.
#[test]
fn folders_above_an_entry_come_before_it() {
    let all = complete(&entries(Path::new("/x")));
    let paths: Vec<_> = all.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, ["etc", "etc/passwd", "usr", "usr/bin", "usr/bin/x"]);
}

/// The libtorch layer is 450 MB: sending it again to a containerd that has it would make every new trainer slow.
#[test]
fn blobs_that_are_there_are_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    fs::write(&file, "program").unwrap();
    let store = Store::new(dir.path().join("images")).unwrap();
    let layer = store.layer(&entries(&file)).unwrap();
    store.image("x", std::slice::from_ref(&layer), &run_config(), |digest| format!("registry/x@{digest}")).unwrap();
    let mut sent = Vec::new();
    stream(&store.layout("x"), |digest| digest == format!("sha256:{}", layer.digest), &mut sent).unwrap();
    let names: Vec<_> = tar::Archive::new(sent.as_slice())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with(&layer.digest)));
}

/// An old trainer's layers would fill the disk, one build after the other.
#[test]
fn what_no_image_uses_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("images")).unwrap();
    let unused = store.blob(b"old").unwrap();
    store.image("x", &[], &run_config(), |digest| format!("registry/x@{digest}")).unwrap();
    store.prune().unwrap();
    assert!(!store.pool(&unused.digest).exists());
    assert_eq!(fs::read_dir(dir.path().join("images/blobs")).unwrap().count(), 2);
}
