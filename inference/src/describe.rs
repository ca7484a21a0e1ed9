//! What the server says about itself and its model: the protocol's metadata, and of Triton's extensions the model's
//! configuration, the statistics and the index of models.

use serde_json::{Value, json};

use crate::metrics::Tally;
use crate::protocol::{INPUT, Identity, OUTPUT};

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

/// `GET /v2/models/{model}/config`. A batch axis is not the client's to use: requests share batches by themselves.
pub fn config(identity: &Identity) -> Value {
    json!({
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
