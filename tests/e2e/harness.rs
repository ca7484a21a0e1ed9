//! Starts the federation once and runs the scenarios against it.

use std::{error::Error, process::ExitCode, time::Instant};

use serde_json::{Value, json};
use xtask::{
    cache,
    cargo::Profile,
    cluster,
    federation::{Federation, data, install, promote, roster, study, view, wait},
    images, plugin,
};

/// Result of a scenario; any error fails it with its text.
pub type Outcome = Result<(), Box<dyn Error>>;

/// What the scenarios share.
pub struct World {
    /// The clusters.
    pub federation: Federation,
    /// Parent of the hospitals' data folders.
    pub data: std::path::PathBuf,
    /// The safety officer whose key the hospitals trust.
    pub signer: promote::Signer,
    /// Who signs rosters.
    pub governance: roster::Governance,
    /// The `kubectl-consilium` program.
    pub plugin: std::path::PathBuf,
}

/// Names of the hospitals.
pub const HOSPITALS: [&str; 4] = ["alder", "birch", "cedar", "damson"];

fn start() -> Result<World, Box<dyn Error>> {
    let hospitals: Vec<String> = HOSPITALS.map(str::to_owned).to_vec();
    cluster::check(&hospitals)?;
    cluster::down()?;
    let images = images::build(&images::Variant::Cpu, Profile::Dev, &[])?;
    let plugin = plugin::build(Profile::Dev)?;
    let data = data::make(&data::Source::Phantoms { cases: 10 }, &hospitals)?;
    let clusters = cluster::up(&cluster::Spec { hospitals })?;
    images::load_all(&clusters, &images)?;
    let federation = Federation::new(clusters, images)?;
    install::all(&federation, &data)?;
    let signer = promote::Signer::new(&cache::sub("e2e")?, &plugin)?;
    let governance = roster::Governance::new(&cache::sub("e2e")?, &plugin)?;
    governance.establish(&federation)?;
    Ok(World { federation, data, signer, governance, plugin })
}

/// One scenario, over clusters that it shares with the others.
pub type Scenario = fn(&World) -> Outcome;

/// Runs all scenarios in order, also after one has failed, and closes with the counts.
pub fn run(scenarios: &[(&str, Scenario)]) -> ExitCode {
    let begin = Instant::now();
    let world = match start() {
        Ok(world) => world,
        Err(error) => {
            println!("the federation did not start: {error}\n0 passed, {} failed", scenarios.len());
            return ExitCode::FAILURE;
        }
    };
    println!("federation started in {:.0} s", begin.elapsed().as_secs_f64());
    let mut failed = 0;
    for (name, scenario) in scenarios {
        let begin = Instant::now();
        let outcome = scenario(&world);
        let took = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("test {name} ... ok ({took:.0} s)"),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({took:.0} s)\n  {error}");
                explain(&world);
            }
        }
    }
    println!("{} passed, {failed} failed", scenarios.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a person would look at first after a failure.
fn explain(world: &World) {
    let hub = &world.federation.hub;
    let show = |what: &str, text: xtask::error::Result<String>| {
        println!("  --- {what}");
        text.unwrap_or_else(|error| error.to_string()).lines().for_each(|line| println!("  {line}"));
    };
    show(
        "hub",
        hub.kubectl(&["get", "trustsites,federatedstudies,trainingrounds,modelreleases,modelpromotions", "-A"]),
    );
    show("operator", hub.kubectl(&["logs", "-n", "consilium-system", "deployment/consilium-operator", "--tail=15"]));
    for site in &world.federation.sites {
        show(&site.name, site.kubectl(&["get", "sitepolicies,roundtasks,jobs,pods,modeldeployments", "-A"]));
        show("its agent", site.kubectl(&["logs", "-n", "consilium-agent", "consilium-agent-0", "--tail=15"]));
    }
}

/// A scenario's own sentence for what it saw instead.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

impl World {
    /// A plan for a small study on phantoms.
    pub fn plan(&self, name: &str, rounds: u32) -> study::Plan {
        study::Plan {
            name: name.to_owned(),
            sites: HOSPITALS.map(str::to_owned).to_vec(),
            rounds,
            width: 4,
            shape: [32, 40, 32],
            epochs: 1,
            batch_size: 2,
            learning_rate: "0.003".into(),
            gate: ("0.01".into(), "0".into()),
            deadline: "10m".into(),
            grace: "5m".into(),
            gpus: 1,
        }
    }

    /// The object of a plan.
    pub fn object(&self, plan: &study::Plan) -> Result<Value, Box<dyn Error>> {
        Ok(study::object(plan, &self.federation.image("consilium-trainer")?)?)
    }

    /// Applies policies with these opt-ins in the named hospitals.
    pub fn allow(&self, sites: &[&str], opt_ins: &[Value]) -> Outcome {
        self.apply(sites, &self.policy(opt_ins)?)
    }

    /// As [`World::allow`], also where the hub can read these hospitals' updates.
    pub fn allow_plaintext(&self, sites: &[&str], opt_ins: &[Value]) -> Outcome {
        let mut policy = self.policy(opt_ins)?;
        policy["spec"]["aggregation"]["allowPlaintextUpdates"] = json!(true);
        self.apply(sites, &policy)
    }

    fn policy(&self, opt_ins: &[Value]) -> Result<Value, Box<dyn Error>> {
        let keys = json!([self.signer.trusted_key()?]);
        let pins = study::Pins { governance: self.governance.pinned()?, keys };
        // A handful of phantoms rounded to tens would not add up to what the hospitals publish.
        let exact = |opt_in: &Value| {
            let mut opt_in = opt_in.clone();
            opt_in["weightBucket"] = json!(1);
            opt_in
        };
        Ok(study::policy(&self.federation, &opt_ins.iter().map(exact).collect::<Vec<_>>(), &pins)?)
    }

    fn apply(&self, sites: &[&str], policy: &Value) -> Outcome {
        for site in sites {
            study::apply_policy(self.federation.site(site)?, policy)?;
        }
        Ok(())
    }

    /// A round of a study as it stands; `Null` while it is not there.
    pub fn round(&self, study: &str, number: u64) -> xtask::error::Result<Value> {
        let rounds = study::rounds(&self.federation, study)?;
        Ok(rounds.into_iter().find(|round| round["spec"]["number"] == number).unwrap_or_default())
    }

    /// Waits until a round is as it should be; fails at once when the round has failed.
    pub fn until_round(
        &self,
        study: &str,
        number: u64,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value, Box<dyn Error>> {
        let seen = wait::until(&self.federation.hub, what, || {
            let seen = self.round(study, number)?;
            let over = holds(&seen) || seen["status"]["round"]["step"] == "Failed";
            Ok(wait::Answer::of(over.then(|| seen.clone()), view::describe(&seen)))
        })?;
        let why = || format!("{what}: {}: {}", view::describe(&seen), seen["status"]["round"]["message"]);
        ensure(holds(&seen), why)?;
        Ok(seen)
    }

    /// Names of the hospitals whose updates are in a round's model, in the order of the round.
    pub fn contributors(round: &Value) -> Vec<String> {
        let sites = round["status"]["round"]["sites"].as_array().into_iter().flatten();
        let names = sites.filter(|site| site["contributed"] == true).map(|site| site["site"].as_str());
        names.flatten().map(str::to_owned).collect()
    }

    /// The entry of a hospital in a round.
    pub fn site_entry<'a>(round: &'a Value, site: &str) -> &'a Value {
        let sites = round["status"]["round"]["sites"].as_array();
        sites.and_then(|list| list.iter().find(|entry| entry["site"] == site)).unwrap_or(&Value::Null)
    }
}
