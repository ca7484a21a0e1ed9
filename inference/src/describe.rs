//! What the server says about itself and its model: the protocol's metadata, and of Triton's extensions the model's
//! configuration, the statistics and the index of models.

use serde_json::{Value, json};

use crate::metrics::Tally;
use crate::protocol::{INPUT, Identity, OUTPUT};

/// The parameter that says where x, y and z of a volume go, such as `RAS`.
pub const ORIENTATION: &str = "orientation";
/// The parameter that says its spacing along them in mm, where only one will do.
pub const SPACING: &str = "spacing";

/// `GET /v2`.
pub fn server() -> Value {
    json!({ "name": "consilium-inference", "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data", "model_configuration", "statistics"] })
}

/// `GET /v2/models/{model}`.
pub fn metadata(identity: &Identity) -> Value {
    json!({
        "name": identity.name, "versions": [identity.version], "platform": "consilium",
        "inputs": [{ "name": INPUT, "datatype": "FP32", "shape": [-1, -1, -1] }],
        "outputs": [{ "name": OUTPUT, "datatype": "UINT8", "shape": [-1, -1, -1] }],
    })
}

/// `GET /v2/models/{model}/ready`.
pub fn ready(identity: &Identity) -> Value {
    json!({ "name": identity.name, "ready": true })
}

/// `GET /v2/models/{model}/config`. A batch axis is not the client's to use: requests share batches by themselves. A request
/// has no header of a scan, so that the client has to know how scans must lie: that stands in the parameters.
pub fn config(identity: &Identity) -> Value {
    let mut parameters = json!({ ORIENTATION: { "string_value": identity.frame.axes().to_string() } });
    if let Some([x, y, z]) = identity.frame.spacing() {
        parameters[SPACING] = json!({ "string_value": format!("{x} {y} {z}") });
    }
    json!({
        "parameters": parameters,
        "name": identity.name, "platform": "consilium", "backend": "consilium", "max_batch_size": 0,
        "input": [{ "name": INPUT, "data_type": "TYPE_FP32", "dims": [-1, -1, -1] }],
        "output": [{ "name": OUTPUT, "data_type": "TYPE_UINT8", "dims": [-1, -1, -1] }],
    })
}

/// `GET /v2/models/{model}/stats`: requests that were answered and that were not, each with the time they took.
pub fn statistics(identity: &Identity, tally: &Tally) -> Value {
    let counted = |(count, nanoseconds): (u64, u64)| json!({ "count": count, "ns": nanoseconds });
    json!({ "model_stats": [{
        "name": identity.name, "version": identity.version, "last_inference": tally.last_milliseconds(),
        "inference_count": tally.answered().0, "execution_count": tally.executions(),
        "inference_stats": { "success": counted(tally.answered()), "fail": counted(tally.failed()) },
        "batch_stats": [],
    }] })
}

/// `POST /v2/repository/index`.
pub fn index(identity: &Identity) -> Value {
    json!([{ "name": identity.name, "version": identity.version, "state": "READY", "reason": "" }])
}
