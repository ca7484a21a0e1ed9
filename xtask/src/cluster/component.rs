//! A cluster's long-running programs: started into its namespace and group, remembered, and started anew only when they
//! are gone or would be started differently.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Paths,
    net::Netns,
    proc::{self, Identity},
};
use crate::{
    cache,
    error::{Error, IoContext, Result},
    process,
};

/// Puts the shell into the groups named by its arguments up to `--`, then becomes the rest.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo $$ > "$1" || exit 71; shift; done; shift; exec "$@""#;

/// How to start a component.
pub(super) struct Component {
    pub(super) name: &'static str,
    pub(super) argv: Vec<String>,
    /// Files whose change asks for a new start.
    pub(super) inputs: Vec<PathBuf>,
    /// Folder put before the PATH.
    pub(super) path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    identity: Identity,
    fingerprint: String,
}

impl Component {
    /// Sees that the component runs as described. True if it had to be started.
    pub(super) fn ensure(&self, paths: &Paths, netns: &Netns, groups: &[PathBuf]) -> Result<bool> {
        let fingerprint = self.fingerprint()?;
        if let Some(record) = self.record(paths) {
            if record.identity.is_alive() && record.fingerprint == fingerprint {
                return Ok(false);
            }
            stop(&record.identity, self.name, paths)?;
        }
        // One that was started by a run that died before it could write its record.
        for forgotten in groups.first().into_iter().flat_map(|group| proc::with_arguments(group, &self.argv)) {
            stop(&forgotten, self.name, paths)?;
        }
        let log = paths.log(self.name);
        let file = File::create(&log).at("write", &log)?;
        let errors = file.try_clone().at("write", &log)?;
        let mut command = netns.command("sh");
        command.args(["-c", JOIN, "sh"]).args(groups).arg("--").args(&self.argv);
        let child = command
            .env("PATH", prepend_path(&self.path))
            .env_remove("KUBECONFIG")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors);
        // A group of its own: Ctrl-C in the terminal that ran `up` is not meant for it.
        let child = std::os::unix::process::CommandExt::process_group(child, 0)
            .spawn()
            .map_err(|source| Error::Spawn { command: self.argv.join(" "), source })?;
        // nsenter and sh become the program, so its number is the child's. One that has ended already is found out by
        // whoever waits for what it should do.
        if let Some(identity) = Identity::of(child.id()) {
            let record = Record { identity, fingerprint };
            let json = serde_json::to_vec(&record).unwrap_or_default();
            cache::write_atomically(&self.record_file(paths), &json)?;
        }
        reap(child);
        Ok(true)
    }

    /// Fails with the end of its log if the component has ended.
    pub(super) fn check(&self, paths: &Paths) -> Result<()> {
        if self.record(paths).is_some_and(|record| record.identity.is_alive()) {
            return Ok(());
        }
        let log = paths.log(self.name);
        Err(Error::Step {
            step: format!("starting {}", self.name),
            cause: "it ended".to_owned(),
            tail: fs::read_to_string(&log).unwrap_or_default(),
            log,
        })
    }

    fn fingerprint(&self) -> Result<String> {
        let mut parts: Vec<Vec<u8>> = self.argv.iter().map(|arg| arg.clone().into_bytes()).collect();
        for input in &self.inputs {
            parts.push(fs::read(input).at("read", input)?);
        }
        // A program built anew is another program; its time and size tell without reading 150 MB.
        let program = Path::new(&self.argv[0]);
        let meta = fs::metadata(program).at("read", program)?;
        parts.push(format!("{:?} {}", meta.modified().ok(), meta.len()).into_bytes());
        Ok(cache::fingerprint(parts.iter().map(Vec::as_slice)))
    }

    fn record_file(&self, paths: &Paths) -> PathBuf {
        paths.run.join(format!("{}.json", self.name))
    }

    fn record(&self, paths: &Paths) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_file(paths)).ok()?).ok()
    }
}

/// A child that ends while we still run would stay as a zombie and look alive to some.
fn reap(mut child: std::process::Child) {
    thread::spawn(move || child.wait());
}

/// Ends a component, gently first: an etcd that finds its port still held exits.
fn stop(identity: &Identity, name: &str, paths: &Paths) -> Result<()> {
    const GENTLE: Duration = Duration::from_secs(5);
    const LIMIT: Duration = Duration::from_secs(15);
    let begin = Instant::now();
    if let Some(pid) =
        i32::try_from(identity.pid()).ok().and_then(rustix::process::Pid::from_raw).filter(|_| identity.is_alive())
    {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
    }
    while identity.is_alive() {
        if begin.elapsed() > LIMIT {
            return Err(Error::Timeout {
                what: format!("the end of {name} (process {})", identity.pid()),
                seconds: LIMIT.as_secs(),
                logs: paths.logs.clone(),
                last: String::new(),
            });
        }
        if begin.elapsed() > GENTLE {
            proc::kill(identity.pid());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The PATH with `folder` before it, and the folders that root's programs are in.
pub(super) fn prepend_path(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    path.push(":/usr/sbin:/sbin:");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    path
}

/// Asks until `ready` says yes; `alive` is asked each time too, so that a component that died is reported at once.
pub(super) fn wait_for(
    what: &str,
    limit: Duration,
    paths: &Paths,
    alive: impl Fn() -> Result<()>,
    ready: impl Fn() -> Result<String>,
) -> Result<String> {
    let begin = Instant::now();
    loop {
        alive()?;
        match ready() {
            Ok(answer) => return Ok(answer),
            Err(error) if begin.elapsed() > limit => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                    logs: paths.logs.clone(),
                    last: error.to_string(),
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Runs a program in the cluster's namespace with its PATH; for what is asked of a component, not for starting one.
pub(super) fn ask(netns: &Netns, program: &Path, args: &[&str]) -> Result<String> {
    let mut command: Command = netns.command(program);
    process::output(command.args(args))
}
