//! The stage on which the model stands, in a file that the hospital's agent has the node keep: what whoever asks may do
//! with an answer. It changes while the server runs, so each answer says it.

use std::ffi::OsString;
use std::path::PathBuf;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use consilium_federation::ladder::Stage;

/// Environment variable with the file's path.
pub const VARIABLE: &str = "CONSILIUM_STAGE";
/// The header of each answer.
pub const HEADER: HeaderName = HeaderName::from_static("consilium-stage");

/// Where the stage stands.
#[derive(Debug, Clone)]
pub struct Told(Option<PathBuf>);

impl Told {
    /// The stage at the path that the variable holds.
    pub fn new(path: Option<OsString>) -> Self {
        Self(path.filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    /// The stage at this moment. Nobody's word, or one that cannot be read, is Shadow.
    pub fn stage(&self) -> Stage {
        let text = self.0.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(Stage::Shadow)
    }
}

/// The routes, with the stage on each answer.
pub fn on(routes: Router, told: Told) -> Router {
    routes.layer(from_fn_with_state(told, say))
}

async fn say(State(told): State<Told>, request: Request, next: Next) -> Response {
    // As it is when the answer is ready: a model that fell meanwhile has fallen.
    let mut response = next.run(request).await;
    response.headers_mut().insert(HEADER, HeaderValue::from_static(told.stage().as_str()));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    async fn said(routes: &Router) -> String {
        let request = Request::builder().uri("/").body(Body::empty()).unwrap();
        let response = routes.clone().oneshot(request).await.unwrap();
        response.headers()[HEADER].to_str().unwrap().to_owned()
    }

    /// A worker would show a reader what nobody may see yet, or go on showing it after the model fell.
    #[tokio::test]
    async fn each_answer_says_the_stage_of_that_moment_and_shadow_where_it_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stage");
        let routes = || Router::new().route("/", get(|| async { "answer" }));
        let told = on(routes(), Told::new(Some(path.clone().into_os_string())));
        assert_eq!(said(&told).await, "Shadow");
        for (text, stage) in [
            ("SafetyNet", "SafetyNet"),
            ("PrimaryReader\n", "PrimaryReader"),
            ("", "Shadow"),
            ("primaryreader", "Shadow"),
            ("Everything", "Shadow"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(said(&told).await, stage, "{text:?}");
        }
        for nobody in [None, Some(OsString::new())] {
            assert_eq!(said(&on(routes(), Told::new(nobody))).await, "Shadow");
        }
    }
}
