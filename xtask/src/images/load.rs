//! Bringing images into a cluster's containerd.

use std::{collections::BTreeSet, process::Stdio, thread};

use super::{Image, oci};
use crate::{
    cluster::{self, Cluster},
    error::{Error, Result},
    process,
};

/// Brings into the cluster those images that it does not have. Layers that it has from another image are not sent.
pub fn load(cluster: &Cluster, images: &[Image]) -> Result<()> {
    let have = lines(process::output(cluster.ctr().args(["images", "list", "--quiet"]))?);
    for image in images.iter().filter(|image| !have.contains(&image.reference())) {
        let blobs = lines(process::output(cluster.ctr().args(["content", "list", "--quiet"]))?);
        import(cluster, image, |digest| blobs.contains(digest))?;
    }
    Ok(())
}

/// As [`load`], into several clusters at once.
pub fn load_all(clusters: &[Cluster], images: &[Image]) -> Result<()> {
    thread::scope(|scope| {
        let loading: Vec<_> = clusters.iter().map(|cluster| scope.spawn(|| load(cluster, images))).collect();
        loading.into_iter().try_for_each(cluster::join)
    })
}

fn lines(listing: String) -> BTreeSet<String> {
    listing.lines().map(str::to_owned).collect()
}

/// The name in the layout's index, with the digest in it, becomes the image's name in containerd: the kubelet looks an
/// image up by just that.
fn import(cluster: &Cluster, image: &Image, present: impl Fn(&str) -> bool) -> Result<()> {
    let mut ctr = cluster.ctr();
    ctr.args(["images", "import", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let command = process::shown(&ctr);
    let mut child = ctr.spawn().map_err(|source| Error::Spawn { command: command.clone(), source })?;
    // Not to be joined before the child ends: one that fails early stops reading, and that is what is to be told.
    let sent = child.stdin.take().map(|stdin| oci::stream(&image.layout, present, std::io::BufWriter::new(stdin)));
    let output = child.wait_with_output().map_err(|source| Error::Spawn { command: command.clone(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Command { command, status: output.status, stderr });
    }
    sent.unwrap_or(Ok(()))
}
