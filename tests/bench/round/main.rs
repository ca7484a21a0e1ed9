//! A round in which nobody trains: what the federation itself costs, under masks.
//!
//! The hub is `consilium-operator` as it is deployed, beside a real API server; each hospital is a process with the
//! agent's own link, volume and protocol, whose update lies ready on its disk; between them is mutual TLS on loopback.
//! What is left out is the kubelet: no pods start. One JSON object a line:
//! `{"bench","case","metric","value","unit","against","ratio","budget","met"}`.
//!
//! Run it by `cargo xtask bench round`; `--long` adds models and rosters that take minutes. The program itself, with
//! `CONSILIUM_OPERATOR` naming the operator's, takes `--shape SITES,MILLIONS,ROUNDS` and the hospitals' `RUST_LOG`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench that cannot run stops with what it met"
)]

mod federation;
mod hospital;
mod hub;

use std::path::PathBuf;

use federation::{Federation, Shape};
use serde_json::json;

/// Seconds that a round without training may take (DESIGN, "Budgets").
const ROUND_BUDGET: f64 = 0.5;
/// Megabytes that the hub's process, and a hospital's, may ever need, whatever the model's size.
const MEMORY_BUDGET: f64 = 150.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, folder] = &arguments[..]
        && role == "hospital"
    {
        return hospital::run(&PathBuf::from(folder));
    }
    let long = arguments.iter().any(|argument| argument == "--long");
    if let [flag, shape] = &arguments[..]
        && flag == "--shape"
    {
        let numbers: Vec<usize> = shape.split(',').map(|n| n.parse().expect("SITES,MILLIONS,ROUNDS")).collect();
        let [sites, millions, rounds] = numbers[..] else { panic!("--shape SITES,MILLIONS,ROUNDS") };
        return measure(Shape { sites, millions, rounds: rounds as u32 });
    }
    let mut shapes = vec![
        Shape { sites: 3, millions: 1, rounds: 9 },
        Shape { sites: 8, millions: 1, rounds: 5 },
        Shape { sites: 8, millions: 10, rounds: 2 },
    ];
    if long {
        shapes.push(Shape { sites: 3, millions: 100, rounds: 1 });
        shapes.push(Shape { sites: 8, millions: 100, rounds: 1 });
        shapes.push(Shape { sites: 50, millions: 1, rounds: 2 });
    }
    shapes.into_iter().for_each(measure);
}

fn measure(shape: Shape) {
    let found = Federation::new(shape).measure();
    let case = format!("{} hospitals x {}M parameters", shape.sites, shape.millions);
    // Only the shape that peers were measured with has a limit on its time.
    let budget = (shape.sites, shape.millions) == (3, 1);
    figure(&case, "round without training", found.seconds, "s", budget.then_some(ROUND_BUDGET));
    figure(&case, "hub peak memory (VmHWM)", found.hub_mb, "MB", Some(MEMORY_BUDGET));
    figure(&case, "hospital peak memory (VmHWM)", found.hospital_mb, "MB", Some(MEMORY_BUDGET));
}

fn figure(case: &str, metric: &str, value: f64, unit: &str, budget: Option<f64>) {
    let round = |value: f64| (value * 1e4).round() / 1e4;
    let against = match (unit, budget) {
        ("s", Some(budget)) => format!("{budget} s; NVFlare 2.5 s, Flower 13.6 s (DESIGN, not in this run)"),
        (_, Some(budget)) => format!("{budget} {unit}"),
        (_, None) => "none".to_owned(),
    };
    let line = json!({
        "bench": "round", "case": case, "metric": metric, "value": round(value), "unit": unit, "against": against,
        "ratio": budget.map(|budget| round(value / budget)), "budget": budget.map(|_| 1.0),
        "met": budget.map(|budget| value <= budget),
    });
    println!("{line}");
}
