//! `reference`: what scans of one kind look like, for `config.network.input`.

use consilium_imaging::input::{Input, Reference, Scaling, local_quantiles};
use consilium_imaging::msd::labelled_cases;
use consilium_imaging::nifti_file::read_volume;
use serde_json::json;

use super::log;
use crate::cli::ReferenceArgs;
use crate::error::TrainerError;

/// Quantiles of a reference: enough for its shape, few enough to be read.
const QUANTILES: usize = 17;

/// Prints the input with the folder's reference, and says which of its own scans it would turn over.
pub(super) fn run(args: &ReferenceArgs) -> Result<(), TrainerError> {
    let cases = labelled_cases(&args.data)?.cases;
    let quantiles = cases
        .iter()
        .map(|case| Ok(local_quantiles(&read_volume(&case.image)?, QUANTILES)))
        .collect::<Result<Vec<_>, TrainerError>>()?;
    let reference = Reference::of(&quantiles).ok_or_else(|| {
        TrainerError::Config(format!(
            "{}: its scans look the same upside down, so that no reference can tell which way they are",
            args.data.display()
        ))
    })?;
    let inverted: Vec<&str> = cases
        .iter()
        .zip(&quantiles)
        .filter(|(_, quantiles)| reference.inverted(quantiles))
        .map(|(case, _)| case.id.as_str())
        .collect();
    log("reference", json!({ "scans": cases.len(), "inverted": inverted }));
    println!("{}", json!(Input { scaling: Scaling::Local, reference: Some(reference) }));
    Ok(())
}
