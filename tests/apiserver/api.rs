//! The few calls that the test makes, as plain HTTP: what counts is the server's own answer, word for word.

use http::{Method, Request, StatusCode};
use kube::{Client, client::Body};
use serde_json::Value;

/// An answer: the status code and the object, or the server's `Status`.
pub struct Answer {
    pub code: StatusCode,
    pub body: Value,
}

impl Answer {
    pub fn accepted(&self) -> bool {
        self.code.is_success()
    }

    /// The message of a refusal.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or("")
    }
}

/// The API server.
pub struct Api(Client);

impl Api {
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let bytes = body.map(|b| serde_json::to_vec(b).expect("JSON")).unwrap_or_default();
        let request = Request::builder().method(method.clone()).uri(path).header("content-type", "application/json");
        let request = request.body(Body::from(bytes)).expect("a request");
        let response = self.0.send(request).await.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let code = response.status();
        let bytes = response.into_body().collect_bytes().await.expect("a whole answer");
        Answer { code, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    /// Creates for real.
    pub async fn create(&self, collection: &str, object: &Value) -> Answer {
        self.call(Method::POST, &format!("{collection}?fieldValidation=Strict"), Some(object)).await
    }

    /// Asks whether the object would be created.
    pub async fn try_create(&self, collection: &str, object: &Value) -> Answer {
        self.call(Method::POST, &format!("{collection}?dryRun=All&fieldValidation=Strict"), Some(object)).await
    }

    /// Asks whether the object may be replaced by this one.
    pub async fn try_replace(&self, path: &str, object: &Value) -> Answer {
        self.call(Method::PUT, &format!("{path}?dryRun=All&fieldValidation=Strict"), Some(object)).await
    }

    /// Replaces for real (also `…/status`).
    pub async fn replace(&self, path: &str, object: &Value) -> Answer {
        self.call(Method::PUT, &format!("{path}?fieldValidation=Strict"), Some(object)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }
}
