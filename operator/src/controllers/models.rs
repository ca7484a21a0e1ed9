//! What the door for models asks of the cluster: who has a token, whether they may, and where others read of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::ModelRelease;
use consilium_federation::Digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource as _};

use super::context::Context;
use super::release::cut;
use crate::models::{AUDIENCE, Act, Cluster, Denied, Who};

/// The API server has to say within so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The cluster as the door for models sees it.
pub struct Rights(pub Arc<Context>);

#[tonic::async_trait]
impl Cluster for Rights {
    async fn admit(&self, token: &str, act: &Act) -> Result<Who, Denied> {
        let asked = async {
            let user = self.who(token).await?;
            let who = Who(user.username.clone().unwrap_or_default());
            self.may(user, act).await?;
            Ok(who)
        };
        let late = |_| Err(Denied::Passing("the hub's API server does not say whose token this is; try again".into()));
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(late)
    }

    fn release(&self, namespace: &str, name: &str) -> Result<Digest, Denied> {
        let key = ObjectRef::<ModelRelease>::new(name).within(namespace);
        let found = self.0.caches.releases.get(&key);
        let release = found.ok_or_else(|| Denied::Release(format!("there is no ModelRelease {namespace}/{name}")))?;
        // Whose model it is stands under the attestation: a copy in another namespace opens nothing.
        if release.spec.study.namespace != namespace {
            let why = format!(
                "ModelRelease {namespace}/{name} is a copy of one in {}; ask there",
                release.spec.study.namespace
            );
            return Err(Denied::Release(why));
        }
        cut::verify(&release.spec, &self.0.key.verifying_key()).map_err(Denied::Release)?;
        Ok(release.spec.model)
    }

    async fn record(&self, who: &Who, act: &Act, model: Digest) {
        let (reason, done, reference) = match act {
            Act::Pull { namespace, release } => ("ModelPulled", "took", self.of_release(namespace, release)),
            Act::Push { namespace } => ("ModelPushed", "brought", of_namespace(namespace)),
        };
        let event = Event {
            type_: EventType::Normal,
            reason: reason.into(),
            note: Some(format!("{} {done} {model}", who.0).chars().take(1000).collect()),
            action: reason.into(),
            secondary: None,
        };
        // They are for people: the log has it too.
        if let Err(error) = self.0.recorder.publish(&event, &reference).await {
            tracing::warn!(reason, %error, "an Event was not recorded");
        }
    }
}

fn of_namespace(namespace: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Namespace".into()),
        name: Some(namespace.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectReference::default()
    }
}

impl Rights {
    fn of_release(&self, namespace: &str, name: &str) -> ObjectReference {
        let key = ObjectRef::<ModelRelease>::new(name).within(namespace);
        let found = self.0.caches.releases.get(&key).map(|release| release.object_ref(&()));
        found.unwrap_or_else(|| of_namespace(namespace))
    }

    async fn who(&self, token: &str) -> Result<UserInfo, Denied> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.0.client.clone());
        let said = api.create(&PostParams::default(), &review).await.map_err(unsaid)?;
        let status = said.status.unwrap_or_default();
        let ours = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        let known = status.authenticated == Some(true) && ours;
        status
            .user
            .filter(|user| known && user.username.as_ref().is_some_and(|name| !name.is_empty()))
            .ok_or(Denied::Unknown)
    }

    async fn may(&self, user: UserInfo, act: &Act) -> Result<(), Denied> {
        let name = user.username.clone().unwrap_or_default();
        let (verb, namespace, release) = match act {
            Act::Pull { namespace, release } => ("pull", namespace, Some(release.clone())),
            Act::Push { namespace } => ("push", namespace, None),
        };
        let on = ResourceAttributes {
            group: Some(ModelRelease::group(&()).into_owned()),
            resource: Some(ModelRelease::plural(&()).into_owned()),
            verb: Some(verb.into()),
            namespace: Some(namespace.clone()),
            name: release,
            ..ResourceAttributes::default()
        };
        let UserInfo { extra, groups, uid, username } = user;
        let extra: Option<BTreeMap<_, _>> = extra;
        let spec = SubjectAccessReviewSpec {
            extra,
            groups,
            uid,
            user: username,
            resource_attributes: Some(on),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.0.client.clone());
        let said = api.create(&PostParams::default(), &review).await.map_err(unsaid)?;
        if said.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        Err(Denied::Forbidden(format!(
            "{name} may not {verb} modelreleases.consilium.health in {namespace}: the hub's administrator grants it, for \
             example with the ClusterRole consilium-models-{verb} in a RoleBinding there"
        )))
    }
}

fn unsaid(error: kube::Error) -> Denied {
    tracing::warn!(%error, "the API server does not say who may take a model");
    Denied::Passing("the hub's API server does not say who may take a model now; try again".into())
}
