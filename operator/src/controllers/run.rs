//! One controller's loop: requests for objects in, concurrent reconciles, requeues by the class of an error.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use futures::{FutureExt, StreamExt, future::BoxFuture};
use kube::Resource;
use kube::runtime::controller::{Action, Config, Error as LoopError, applier};
use kube::runtime::reflector::{Lookup, ObjectRef, Store};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{Class, Error, Failures, wait};
use crate::metrics::{Controller, ReconcileResult};

/// One controller's fixed parts.
pub struct Loop<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    /// For the metrics.
    pub name: Controller,
    /// The cache of its kind.
    pub store: Store<K>,
    /// Its requests.
    pub queue: UnboundedReceiver<ObjectRef<K>>,
}

/// Runs a controller until `shutdown`, and then until its last reconcile has ended.
pub async fn run<K, F, R>(parts: Loop<K>, context: Arc<Context>, reconcile: F, shutdown: CancellationToken)
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Fn(Arc<K>, Arc<Context>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Action, Error>> + Send + 'static,
    ObjectRef<K>: Eq + Hash + Send,
{
    let Loop { name, store, mut queue } = parts;
    let failures = Arc::new(Failures::<ObjectRef<K>>::default());
    let metrics = context.metrics.clone();
    let asked = futures::stream::poll_fn(move |waker| {
        let next = queue.poll_recv(waker);
        metrics.queued(name, queue.len());
        next
    });
    let requests = asked.take_until(shutdown.cancelled_owned()).map(Ok::<_, std::convert::Infallible>);
    let timed = {
        let failures = failures.clone();
        let metrics = context.metrics.clone();
        move |object: Arc<K>, context: Arc<Context>| -> BoxFuture<'static, Result<Action, Error>> {
            let (failures, metrics) = (failures.clone(), metrics.clone());
            let key = ObjectRef::from_obj(&*object);
            let began = Instant::now();
            let work = reconcile(object, context);
            async move {
                let result = work.await;
                metrics.reconciled(name, outcome(&result), began.elapsed());
                if result.is_ok() {
                    failures.clear(&key);
                }
                result
            }
            .boxed()
        }
    };
    let policy = move |object: Arc<K>, error: &Error, _: Arc<Context>| {
        let before = failures.count(ObjectRef::from_obj(&*object));
        wait(error.class(), before, rand::random()).map_or_else(Action::await_change, Action::requeue)
    };
    applier(timed, policy, context, store, requests, Config::default()).for_each(|result| async { log(result) }).await;
}

fn outcome(result: &Result<Action, Error>) -> ReconcileResult {
    match result.as_ref().map_err(Error::class) {
        Ok(_) | Err(Class::Gone) => ReconcileResult::Ok,
        Err(Class::Invalid) => ReconcileResult::Invalid,
        Err(Class::Transient) => ReconcileResult::Transient,
        Err(Class::Conflict) => ReconcileResult::Conflict,
        Err(Class::Bug) => ReconcileResult::Bug,
    }
}

fn log<K: Resource>(result: Result<(ObjectRef<K>, Action), LoopError<Error, std::convert::Infallible>>)
where
    K::DynamicType: Debug + Eq + Hash + Clone,
{
    match result {
        Ok(_) | Err(LoopError::ObjectNotFound(_)) => {}
        Err(LoopError::ReconcilerFailed(error, object)) => match error.class() {
            Class::Gone => {}
            Class::Conflict => tracing::debug!(%object, %error, "someone else wrote first; reading again"),
            Class::Transient | Class::Invalid => tracing::warn!(%object, %error, "reconcile failed"),
            Class::Bug => tracing::error!(%object, %error, "reconcile failed"),
        },
        Err(error) => tracing::error!(%error, "controller loop failed"),
    }
}
