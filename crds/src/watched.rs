//! Objects as a list or a watch brings them: each parsed by itself, so that one that cannot be read never keeps another
//! from being listed or watched.
//!
//! Two things would otherwise let one object blind a program to all others of its kind: a value that the type does not
//! take, and nesting beyond what the JSON parser follows (128 levels), which fails the whole reply. So an object is
//! first read as a plain tree, of which nothing below [`DEPTH`] is kept, and only then as its type.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use consilium_federation::SiteName;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};

use crate::study::WrittenSpec;
use crate::unreadable::{Unreadable, unknown};
use crate::{
    ClinicalPlan, FederatedStudy, ModelDeployment, ModelHazard, ModelPromotion, ModelRelease, RoundTask, SitePolicy,
    TrainingRound, TrustSite,
};

/// Levels of an object that are kept; what lies below is left out, and the object counts as unreadable. No kind of
/// Kubernetes or of ours comes near.
pub const DEPTH: usize = 64;

/// A kind that is watched.
pub trait Kind: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {
    /// What this version understands of the object: everything that counts, or nothing.
    ///
    /// # Errors
    /// See [`Unreadable`].
    fn read(object: Value) -> Result<Self, Unreadable> {
        parse(object)
    }
}

impl Kind for Job {}
impl Kind for Pod {}
impl Kind for ConfigMap {}
impl Kind for Deployment {}
// Written by operator and agent alone, of whatever version: a field that an earlier one does not know is not its own.
impl Kind for TrainingRound {}
impl Kind for ModelRelease {}
impl Kind for RoundTask {}
impl Kind for ModelDeployment {}

impl Kind for FederatedStudy {
    fn read(object: Value) -> Result<Self, Unreadable> {
        WrittenSpec::of(object["spec"].clone()).read()?;
        parse(object)
    }
}

/// The object, if each field of its spec is understood.
macro_rules! whole {
    ($object:expr) => {{
        let object: Value = $object;
        let spec = object["spec"].clone();
        let read: Self = parse(object)?;
        let said = to_value(&read.spec);
        match unknown(&spec, &said, "spec") {
            None => Ok(read),
            Some(field) => Err(Unreadable::Unknown { field }),
        }
    }};
}

/// What people write: a rule that is not understood must not be passed over.
macro_rules! in_full {
    ($($kind:ty),*) => {$(
        impl Kind for $kind {
            fn read(object: Value) -> Result<Self, Unreadable> {
                whole!(object)
            }
        }
    )*};
}

impl ModelHazard {
    fn whole(object: Value) -> Result<Self, Unreadable> {
        whole!(object)
    }
}

impl Kind for ModelHazard {
    /// A hazard that is not understood is there all the same: it is read as one of every model.
    fn read(object: Value) -> Result<Self, Unreadable> {
        Self::whole(object.clone()).or_else(|why| Ok(Self::unread(&object, &why)))
    }
}

in_full!(TrustSite, ModelPromotion, ClinicalPlan, SitePolicy);

fn parse<T: DeserializeOwned>(object: Value) -> Result<T, Unreadable> {
    serde_json::from_value(object).map_err(|e| Unreadable::Invalid { why: e.to_string() })
}

fn to_value<T: Serialize>(spec: &T) -> Value {
    // Safety: no spec holds a map with keys that are not texts, the only way that this can fail.
    #[allow(clippy::expect_used)]
    serde_json::to_value(spec).expect("a spec becomes JSON")
}

/// An object that was read, or what is known of one that was not.
#[derive(Clone, Debug)]
pub struct Watched<K>(pub Result<K, Unread>);

/// An object that this version cannot read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    /// What every object has.
    pub metadata: ObjectMeta,
    /// `status.conditions`, as far as they parse.
    pub conditions: Vec<Condition>,
    /// The hospitals that it names, or that its status says were asked, as far as they can be read: who must hear when it
    /// goes.
    pub hospitals: BTreeSet<SiteName>,
    /// Why it cannot be read.
    pub why: Unreadable,
}

/// Hospitals of a promotion or a round, wherever they stand.
fn hospitals(object: &Value) -> BTreeSet<SiteName> {
    let list = |at: &str| object.pointer(at).and_then(Value::as_array).into_iter().flatten();
    let named = list("/spec/sites").chain(list("/spec/participants"));
    let asked = list("/status/sites").chain(list("/status/round/sites")).map(|entry| &entry["site"]);
    named.chain(asked).filter_map(|name| name.as_str()?.parse().ok()).collect()
}

impl<'de, K: Kind> Deserialize<'de> for Watched<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut cut = None;
        let object = Tree { depth: 0, path: &mut Vec::new(), cut: &mut cut }.deserialize(deserializer)?;
        let metadata = object["metadata"].clone();
        let conditions = object["status"]["conditions"].clone();
        let hospitals = hospitals(&object);
        let why = match cut {
            Some(field) => Unreadable::Depth { field, most: DEPTH },
            None => match K::read(object) {
                Ok(read) => return Ok(Self(Ok(read))),
                Err(why) => why,
            },
        };
        let metadata = ObjectMeta::deserialize(metadata).map_err(D::Error::custom)?;
        let conditions = Vec::<Condition>::deserialize(conditions).unwrap_or_default();
        Ok(Self(Err(Unread { metadata, conditions, hospitals, why })))
    }
}

impl<K: Kind> Resource for Watched<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unread| &unread.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unread| &mut unread.metadata, K::meta_mut)
    }
}

/// Reads a tree down to [`DEPTH`]; of what lies below, only the place is noted. The parser walks over what is ignored
/// without recursion, so no depth ends it.
struct Tree<'a> {
    depth: usize,
    path: &'a mut Vec<String>,
    cut: &'a mut Option<String>,
}

impl Tree<'_> {
    fn inner(&mut self) -> Tree<'_> {
        Tree { depth: self.depth + 1, path: self.path, cut: self.cut }
    }

    /// Notes the place: three parts say which field it is.
    fn cut(&mut self) {
        let field: Vec<&str> = self.path.iter().take(3).map(String::as_str).collect();
        self.cut.get_or_insert_with(|| field.join("."));
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        if self.depth >= DEPTH {
            self.cut();
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        if self.depth >= DEPTH {
            self.cut();
            while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        while let Some(key) = fields.next_key::<String>()? {
            // As large and as deep as the object itself, and of no use to anybody here.
            if key == "managedFields" && self.path.as_slice() == ["metadata"] {
                fields.next_value::<IgnoredAny>()?;
                continue;
            }
            self.path.push(key);
            let value = fields.next_value_seed(self.inner())?;
            if let Some(key) = self.path.pop() {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    fn study(name: &str, levels: usize) -> String {
        let spec = serde_json::to_string(&json!({
            "sites": [{"name": "alder"}, {"name": "birch"}, {"name": "cedar"}],
            "trainer": {"image": format!("registry.example/t@sha256:{}", "1".repeat(64)), "gpus": 0, "config": {"x": "HERE"}},
            "initialModel": {"seed": 7}, "aggregation": {"secure": {"minContributors": 3}, "clipNorm": "100"},
            "rounds": {"max": 1, "quorum": 3, "deadline": "1h"},
        }))
        .unwrap();
        let nested = format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        let spec = spec.replace("\"HERE\"", &nested);
        format!(
            "{{\"apiVersion\":\"consilium.health/v1alpha1\",\"kind\":\"FederatedStudy\",\"metadata\":{{\"name\":\"{name}\",\
             \"namespace\":\"n\",\"uid\":\"u-{name}\",\"managedFields\":[{{\"manager\":\"x\"}}]}},\"spec\":{spec}}}"
        )
    }

    fn list(items: &[String]) -> String {
        format!(
            "{{\"apiVersion\":\"consilium.health/v1alpha1\",\"kind\":\"FederatedStudyList\",\"metadata\":{{\"resourceVersion\":\"7\"}},\"items\":[{}]}}",
            items.join(",")
        )
    }

    /// One researcher's config, nested beyond what the parser follows, once kept the hub from every study of everybody.
    #[test]
    fn no_depth_keeps_the_others_from_being_listed_or_watched() {
        for levels in [20, 28, 29, 40, 60, 117, 124, 130, 1_000, 100_000] {
            let all: ObjectList<Watched<FederatedStudy>> =
                serde_json::from_str(&list(&[study("a", 1), study("deep", levels), study("b", 2)])).unwrap();
            let read: Vec<bool> = all.items.iter().map(|item| item.0.is_ok()).collect();
            assert_eq!(read, [true, levels < 32, true], "{levels}");
            let event = format!("{{\"type\":\"MODIFIED\",\"object\":{}}}", study("deep", levels));
            let WatchEvent::Modified(event) =
                serde_json::from_str::<WatchEvent<Watched<FederatedStudy>>>(&event).unwrap()
            else {
                panic!("a change")
            };
            assert_eq!((event.meta().name.as_deref(), event.0.is_ok()), (Some("deep"), levels < 32), "{levels}");
            if let Err(unread) = event.0 {
                let words = unread.why.to_string();
                assert!(words.starts_with("spec.trainer.config") && words.contains("levels"), "{words}");
            }
        }
    }

    /// What cannot be read has a name, a UID and its finalizers, by which it can be told of and let go.
    #[test]
    fn what_cannot_be_read_is_still_somebody() {
        let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "TrustSite",
            "metadata": {"name": "alder", "uid": "u", "generation": 4, "finalizers": ["a/b"], "managedFields": [{"manager": "x"}]},
            "spec": {"accepted": "perhaps"},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let Watched(found): Watched<TrustSite> = serde_json::from_value(object.clone()).unwrap();
        let unread = found.unwrap_err();
        assert_eq!((unread.metadata.uid.as_deref(), unread.metadata.generation), (Some("u"), Some(4)));
        assert_eq!((unread.metadata.finalizers.unwrap().len(), unread.conditions.len()), (1, 1));
        assert!(unread.why.to_string().contains("perhaps"), "{}", unread.why);
        let mut good = object;
        good["spec"] = json!({"accepted": true});
        let Watched(found): Watched<TrustSite> = serde_json::from_value(good).unwrap();
        assert_eq!(found.unwrap().metadata.managed_fields, None);
    }

    /// A rule of a later version that is passed over would be a permission that nobody gave.
    #[test]
    fn a_rule_that_is_not_known_is_not_passed_over() {
        let policy = |spec: Value| {
            let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "default"}, "spec": spec});
            serde_json::from_value::<Watched<SitePolicy>>(object).unwrap().0.map_err(Box::new)
        };
        let table: Value = serde_yaml_ng::from_str(include_str!("../testdata/cases.yaml")).unwrap();
        let good = table["objects"]["SitePolicy"]["spec"].clone();
        assert!(policy(good.clone()).is_ok());
        let mut later = good.clone();
        later["studies"][0]["window"] = json!("Sat 22:00/8h");
        let words = policy(later).unwrap_err().why.to_string();
        assert!(words.contains("spec.studies[0].window") && words.contains("update"), "{words}");
        let mut empty = good;
        empty["window"] = json!([]);
        assert!(policy(empty).is_ok());
    }
}
