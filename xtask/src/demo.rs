//! `cargo xtask demo`: from a bare machine to a model that answers in each of four hospitals.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cache,
    cargo::Profile,
    cluster,
    error::{IoContext, Result},
    federation::{Federation, data, install, promote, roster, study, view},
    images, interrupt, plugin,
};

/// What the demo can be told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Medical Segmentation Decathlon folder (imagesTr, labelsTr; with a cases.csv of persons and regimes, cut by those);
    /// without it, phantoms.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Simulate scanners that differ between hospitals (needs --data).
    #[arg(long, requires = "data")]
    shift: bool,
    /// With --shift: let the network see scans z-scored alone, and not by a reference of the first hospital's; shows what
    /// a mean of updates does by itself where scanners differ.
    #[arg(long, requires = "shift")]
    plain: bool,
    /// Rounds to train.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Passes over the data in each round.
    #[arg(long, default_value_t = 1)]
    epochs: u32,
    /// Width of the network.
    #[arg(long, default_value_t = 8)]
    width: u32,
    /// Scans in one step: a hospital with few scans takes few steps in an epoch, and small steps make more of them.
    #[arg(long, default_value_t = 1)]
    batch_size: u32,
    /// Learning rate of the first round.
    #[arg(long, default_value = "0.002")]
    learning_rate: String,
    /// Names of the hospitals.
    #[arg(long, value_delimiter = ',', default_value = "alder,birch,cedar,damson")]
    hospitals: Vec<String>,
    /// Leave everything running; `cargo xtask cluster down` ends it.
    #[arg(long)]
    keep: bool,
    /// Write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Times of the steps, printed as they end.
pub struct Clock {
    start: Instant,
    last: Instant,
    steps: Vec<(String, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, steps: Vec::new() }
    }
}

impl Clock {
    /// The step that just ended.
    pub fn step(&mut self, name: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        eprintln!("[{:>5.0} s] {name}: {seconds:.1} s", self.start.elapsed().as_secs_f64());
        self.steps.push((name.to_owned(), seconds));
    }

    fn json(&self) -> Value {
        self.steps.iter().map(|(name, seconds)| json!({"step": name, "seconds": round1(*seconds)})).collect()
    }
}

fn round1(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Runs the demo; the clusters are taken down at its end, whether it succeeds or not, unless `--keep` was given.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.keep {
        interrupt::takes_clusters_down();
    }
    let result = demo(arguments);
    if arguments.keep {
        eprintln!("The clusters go on running: `cargo xtask cluster exec hub -- kubectl get trounds -A`;");
        eprintln!("`cargo xtask cluster down` ends them.");
        return result;
    }
    result.and(cluster::down())
}

fn demo(arguments: &Arguments) -> Result<()> {
    let source = match &arguments.data {
        Some(folder) => {
            let folder = fs::canonicalize(folder).at("find the data folder", folder)?;
            data::Source::Decathlon { folder, shift: arguments.shift }
        }
        None => data::Source::Phantoms { cases: 20 },
    };
    eprintln!("Consilium demo, {}.", source.describe());
    // What is amiss is said before anything is built, and clusters of an earlier run keep no core busy meanwhile.
    cluster::check(&arguments.hospitals)?;
    cluster::down()?;
    let mut clock = Clock::default();
    let images = images::build(&images::Variant::Cpu, Profile::Release, &[])?;
    let plugin = plugin::build(Profile::Release)?;
    clock.step("programs and images");
    let data = data::make(&source, &arguments.hospitals)?;
    clock.step("data of the hospitals");
    let clusters = cluster::up(&cluster::Spec { hospitals: arguments.hospitals.clone() })?;
    clock.step("clusters (hub and hospitals)");
    images::load_all(&clusters, &images)?;
    clock.step("images into the clusters");
    let federation = Federation::new(clusters, images)?;
    install::all(&federation, &data)?;
    clock.step("charts installed, agents connected");
    let signer = promote::Signer::new(&cache::sub("demo")?, &plugin)?;
    let governance = roster::Governance::new(&cache::sub("demo")?, &plugin)?;
    governance.establish(&federation)?;
    clock.step("roster signed by two of two, accepted in each hospital");
    let pins = study::Pins { governance: governance.pinned()?, keys: json!([signer.trusted_key()?]) };
    let study = train(arguments, (&source, &data), &federation, &pins)?;
    clock.step("study");
    let served = serve(&federation, &study, &signer, arguments, &data)?;
    clock.step("release, promotion to Shadow, answers");
    report(arguments, &source, &federation, &study, &served, &clock)
}

fn plan(arguments: &Arguments, source: &data::Source) -> study::Plan {
    study::Plan {
        name: "hippocampus".into(),
        sites: arguments.hospitals.clone(),
        rounds: arguments.rounds,
        width: arguments.width,
        shape: source.shape(),
        epochs: arguments.epochs,
        batch_size: arguments.batch_size,
        learning_rate: arguments.learning_rate.clone(),
        // What a model must reach to be looked at at all; a real study asks for more. Phantoms are few, and harder.
        gate: match source {
            data::Source::Decathlon { .. } => ("0.5".into(), "0.4".into()),
            data::Source::Phantoms { .. } => ("0.05".into(), "0.05".into()),
        },
        deadline: "2h".into(),
        grace: "10m".into(),
        gpus: 8,
    }
}

fn train(
    arguments: &Arguments,
    (source, data): (&data::Source, &Path),
    federation: &Federation,
    pins: &study::Pins,
) -> Result<Value> {
    let plan = plan(arguments, source);
    let mut object = study::object(&plan, &federation.image("consilium-trainer")?)?;
    if arguments.shift && !arguments.plain {
        // As a researcher would who has scans of one hospital at hand, and asks what they look like.
        let own = &arguments.hospitals[0];
        object["spec"]["trainer"]["config"]["network"]["input"] = data::reference(data, own)?;
    }
    let accepted = study::apply(federation, &object)?;
    let policy = study::policy(federation, &[study::opt_in(&accepted)], pins)?;
    federation.sites.iter().try_for_each(|site| study::apply_policy(site, &policy))?;
    // A round over a large data set on few cores may show nothing for long.
    view::follow(federation, &plan.name, Duration::from_secs(3 * 3600))?;
    study::finished(federation, &plan.name)
}

fn serve(
    federation: &Federation,
    study: &Value,
    signer: &promote::Signer,
    arguments: &Arguments,
    data: &Path,
) -> Result<Vec<promote::Served>> {
    let release = promote::release(federation, study)?;
    let approval = signer.sign(&release, "Shadow")?;
    let promotion = promote::promotion("hippocampus-shadow", &release, "Shadow", &arguments.hospitals, &[approval]);
    federation.hub.apply(&[promotion])?;
    promote::rolled_out(federation, "hippocampus-shadow")?;
    federation.sites.iter().map(|site| promote::ask(site, data)).collect()
}

fn report(
    arguments: &Arguments,
    source: &data::Source,
    federation: &Federation,
    study: &Value,
    served: &[promote::Served],
    clock: &Clock,
) -> Result<()> {
    println!("\n{}", source.describe());
    // Whole names: kubectl looks a name up anew when it does not know it, but not a short one.
    for kinds in ["trainingrounds", "modelreleases,modelpromotions"] {
        println!("\n$ kubectl get {kinds} -n research");
        print!("{}", federation.hub.kubectl(&["get", kinds, "-n", "research"])?);
    }
    println!("\nanswers of the promoted model, each from its hospital's own pod:");
    for answer in served {
        let dice: Vec<String> = answer.dice.iter().map(|d| format!("{d:.3}")).collect();
        println!("  {:8} {:28} Dice {}  {:.0} ms", answer.site, answer.case, dice.join(" / "), answer.milliseconds);
    }
    let rounds = study::rounds(federation, study["metadata"]["name"].as_str().unwrap_or_default())?;
    let figures = json!({
        "data": source.describe(),
        "steps": clock.json(),
        "rounds": rounds.iter().map(|round| json!({
            "number": round["spec"]["number"], "state": round["status"]["round"],
        })).collect::<Vec<_>>(),
        "served": served.iter().map(|s| json!({
            "site": s.site, "case": s.case, "dice": s.dice, "milliseconds": round1(s.milliseconds),
        })).collect::<Vec<_>>(),
    });
    if let Some(path) = &arguments.json {
        cache::write_atomically(path, format!("{figures:#}\n").as_bytes())?;
    }
    Ok(())
}
