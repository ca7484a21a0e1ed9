//! Figures of the kernels and of both sides of the protocol, one JSON object per line:
//! `{"bench","case","metric","value","unit","against","ratio","budget","met"}`.
//!
//! `cargo run -p consilium-secagg --example bench -- [kernels|client|hub|all] [--long]`
mod kernels;
mod report;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let which = arguments.iter().find(|a| !a.starts_with("--")).map_or("all", String::as_str);
    if matches!(which, "kernels" | "all") {
        kernels::run();
    }
}
