use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body as Answer;
use axum::http::{Request, Response};
use futures::stream;
use serde_json::{Value, json};

use super::*;

const NAMESPACE: &str = "consilium-agent";
/// As the real one, a hundred times as fast.
const PACE: Pace = Pace { read: Duration::from_millis(30), answer: Duration::from_millis(30) };
/// Nothing here takes so long unless it never comes.
const LIMIT: Duration = Duration::from_secs(20);

/// An API server with one policy or none. Connections can die without a word: what goes over them is never answered.
#[derive(Default)]
struct Server {
    /// The policy's spec.
    spec: Mutex<Option<Value>>,
    /// Connections made so far, and how many of them are dead.
    made: watch::Sender<u64>,
    dead: AtomicU64,
}

impl Server {
    fn connect(self: &Arc<Self>) -> Client {
        let (server, number) = (Arc::clone(self), *self.made.borrow());
        self.made.send_modify(|made| *made += 1);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = Arc::clone(&server);
            async move {
                if number < server.dead.load(Ordering::SeqCst) {
                    futures::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(server.answer(request).await)
            }
        });
        Client::new(service, NAMESPACE)
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Answer> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if query.contains("watch=true") {
            return Response::new(Answer::from_stream(stream::pending::<Result<bytes::Bytes, Infallible>>()));
        }
        if request.method() != "GET" {
            return Response::new(Answer::from("{}"));
        }
        let item = |spec: &Value| {
            json!({"apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy",
                "metadata": {"name": "default", "uid": "u", "resourceVersion": "7"}, "spec": spec})
        };
        let items: Vec<Value> = self.spec.lock().unwrap().iter().map(item).collect();
        let list = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicyList",
            "metadata": {"resourceVersion": "7"}, "items": items});
        Response::new(Answer::from(list.to_string()))
    }

    /// All connections die, also those to come; waits until some more have been made in vain.
    async fn stay_silent(&self) {
        self.dead.store(u64::MAX, Ordering::SeqCst);
        let (mut made, enough) = (self.made.subscribe(), *self.made.borrow() + 3);
        tokio::time::timeout(LIMIT, made.wait_for(|made| *made >= enough)).await.unwrap().unwrap();
    }

    /// All connections so far die.
    fn go_silent(&self) {
        self.dead.store(*self.made.borrow(), Ordering::SeqCst);
    }

    fn write(&self, spec: Option<Value>) {
        *self.spec.lock().unwrap() = spec;
    }
}

/// A watch on such a server, and what it has found.
struct Watching {
    server: Arc<Server>,
    seen: watch::Receiver<Option<Arc<SitePolicy>>>,
    synced: Synced,
}

impl Watching {
    fn start() -> Self {
        let server = Arc::new(Server::default());
        let ((policy, seen), (known, synced)) = (watch::channel(None), watch::channel(false));
        let connecting = Arc::clone(&server);
        tokio::spawn(async move {
            let connect = move || Ok(connecting.connect());
            watch((connect, PACE, Clock::system()), NAMESPACE, policy, known, CancellationToken::new()).await
        });
        Self { server, seen, synced }
    }

    /// Waits until what is seen is so.
    async fn until(&mut self, wanted: impl Fn(Option<&SitePolicy>) -> bool) {
        let seen = self.seen.wait_for(|policy| wanted(policy.as_deref()));
        tokio::time::timeout(LIMIT, seen).await.expect("it is seen").unwrap();
    }
}

fn spec(participation: &str) -> Value {
    let policy = crate::policy::tests::policy(&[("/participation", json!(participation))]);
    serde_json::to_value(policy).unwrap()
}

fn is(participation: &'static str) -> impl Fn(Option<&SitePolicy>) -> bool {
    move |policy| policy.is_some_and(|policy| serde_json::to_value(policy.spec.participation).unwrap() == participation)
}

/// A firewall drops the agent's connections without a word, and the hospital writes `Disabled`: models went on for five
/// minutes, until the watch noticed.
#[tokio::test]
async fn an_edit_is_seen_although_every_connection_is_dead() {
    let mut watching = Watching::start();
    watching.server.write(Some(spec("Enabled")));
    watching.until(is("Enabled")).await;
    for _ in 0..3 {
        watching.server.go_silent();
        watching.server.write(Some(spec("Disabled")));
        watching.until(is("Disabled")).await;
        watching.server.write(Some(spec("Enabled")));
        watching.until(is("Enabled")).await;
    }
    watching.server.go_silent();
    watching.server.write(None);
    watching.until(|policy| policy.is_none()).await;
}

/// The guide promises ten seconds: the pause before a read, one in vain, the pause behind it, and one that is answered.
#[test]
fn the_pace_keeps_what_the_guide_promises() {
    let Pace { read, answer } = Pace::default();
    assert!(read + answer + read / 3 + answer <= Duration::from_secs(10));
    let guide = include_str!("../../../docs/guides/hospital-administrator.md");
    assert!(guide.contains("an edit is seen within 10 even where"));
}

/// An API server that does not answer is no word of the hospital's: what was allowed stays allowed, and an agent that has
/// just started does not take silence for "there is no policy", which stops everything.
#[tokio::test]
async fn while_nothing_answers_the_last_known_policy_stands() {
    let mut watching = Watching::start();
    watching.server.stay_silent().await;
    assert!(!*watching.synced.borrow());
    watching.server.dead.store(0, Ordering::SeqCst);
    watching.server.write(Some(spec("Enabled")));
    watching.until(is("Enabled")).await;
    watching.server.stay_silent().await;
    assert!(is("Enabled")(watching.seen.borrow().as_deref()));
}

/// An administrator who added a rule that this agent does not know would otherwise believe it to be in force, or read that
/// there is no policy.
#[tokio::test]
async fn a_policy_that_cannot_be_read_allows_nothing_and_says_why_once() {
    let told: Mutex<Vec<String>> = Mutex::default();
    let ((policy, seen), (known, _synced)) = (watch::channel(None), watch::channel(false));
    let server = Arc::new(Server::default());
    let mut reader = Reader { api: Api::namespaced(server.connect(), NAMESPACE), told: None, policy, synced: known };
    let tell = |unread: Unread| told.lock().unwrap().push(unread.why.to_string());
    let answer = LIMIT;
    server.write(Some(spec("Enabled")));
    reader.read(answer, tell).await.unwrap();
    assert!(seen.borrow().is_some());
    let mut later = spec("Enabled");
    later["window"] = json!({"from": "22:00"});
    server.write(Some(later));
    for _ in 0..3 {
        reader.read(answer, tell).await.unwrap();
        assert!(seen.borrow().is_none());
    }
    {
        let told = told.lock().unwrap();
        assert!(matches!(told.as_slice(), [why] if why.contains("spec.window") && why.contains("update")), "{told:?}");
    }
    server.write(Some(spec("Enabled")));
    reader.read(answer, tell).await.unwrap();
    assert!(seen.borrow().is_some());
    server.write(None);
    reader.read(answer, tell).await.unwrap();
    assert!(seen.borrow().is_none());
}
