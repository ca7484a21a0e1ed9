//! Makes every field of an object wrong, one way at a time, from the object's own schema: a field that is added to the
//! API is tried without anyone thinking of it.

use serde_json::{Map, Value, json};

/// One wrong object and what the refusal must say.
pub struct Wrong {
    /// Path of the field, as the API server writes it.
    pub path: String,
    /// What was done to it.
    pub what: &'static str,
    /// The whole object.
    pub object: Value,
    /// What the message must hold: the path, the value (where the server shows it) and the rule.
    pub says: Vec<String>,
}

/// All of them for one object under its schema.
pub fn every_field(schema: &Value, object: &Value) -> Vec<Wrong> {
    let mut walk = Walk { object, found: Vec::new() };
    walk.node(&schema["properties"]["spec"], &["spec".to_owned()]);
    walk.found
}

struct Walk<'a> {
    object: &'a Value,
    found: Vec<Wrong>,
}

impl Walk<'_> {
    fn node(&mut self, schema: &Value, at: &[String]) {
        let Some(value) = self.object.pointer(&pointer(at)).cloned() else { return };
        self.wrong_type(schema, at);
        match schema["type"].as_str() {
            Some("string") => self.text(schema, at),
            Some("integer") => self.number(schema, at),
            Some("array") => self.list(schema, at, value.as_array().map(Vec::as_slice).unwrap_or_default()),
            Some("object") => self.map(schema, at, value.as_object()),
            _ => {}
        }
    }

    fn add(&mut self, at: &[String], what: &'static str, value: Option<Value>, says: &[&str]) {
        let mut object = self.object.clone();
        set(&mut object, at, value);
        let mut says: Vec<String> = says.iter().map(|s| (*s).to_owned()).collect();
        says.push(shown(at));
        self.found.push(Wrong { path: shown(at), what, object, says });
    }

    fn wrong_type(&mut self, schema: &Value, at: &[String]) {
        let (kind, value) = match schema["type"].as_str() {
            Some("string") if schema["format"] == "date-time" => ("date-time", json!(7)),
            Some("string") => ("string", json!(7)),
            Some("integer") => ("integer", json!("seven")),
            Some("boolean") => ("boolean", json!("yes")),
            Some("array") => ("array", json!("none")),
            _ => ("object", json!("none")),
        };
        self.add(at, "wrong type", Some(value), &[&format!("must be of type {kind}")]);
    }

    fn text(&mut self, schema: &Value, at: &[String]) {
        if schema.get("enum").is_some() {
            self.add(at, "not one of the values", Some(json!("Nonsense")), &["\"Nonsense\"", "supported values"]);
        }
        if let Some(pattern) = schema["pattern"].as_str() {
            // Not too long as well, which would be told in its place.
            let most = schema["maxLength"].as_u64().map_or(usize::MAX, |most| most as usize);
            let wrong = &"!wrong"[..most.min(6)];
            self.add(at, "wrong form", Some(json!(wrong)), &[&format!("\"{wrong}\""), "should match", pattern]);
        }
        if schema["format"] == "date-time" {
            self.add(at, "no time", Some(json!("yesterday")), &["\"yesterday\"", "date-time"]);
        } else if let Some(most) = schema["maxLength"].as_u64() {
            let long = "a".repeat(most as usize + 1);
            self.add(at, "too long", Some(json!(long)), &["Too long", &most.to_string()]);
        }
        if schema["minLength"].as_u64().is_some_and(|least| least > 0) {
            self.add(at, "empty", Some(json!("")), &["at least"]);
        }
    }

    fn number(&mut self, schema: &Value, at: &[String]) {
        let bound = |name: &str| schema[name].as_f64().map(|b| b as i64);
        if let Some(least) = bound("minimum") {
            let (value, rule) = (least - 1, format!("greater than or equal to {least}"));
            self.add(at, "too small", Some(json!(value)), &[&value.to_string(), &rule]);
        }
        if let Some(most) = bound("maximum") {
            let (value, rule) = (most + 1, format!("less than or equal to {most}"));
            self.add(at, "too large", Some(json!(value)), &[&value.to_string(), &rule]);
        }
    }

    fn list(&mut self, schema: &Value, at: &[String], items: &[Value]) {
        if schema["minItems"].as_u64().is_some_and(|least| least > 0) {
            let least = schema["minItems"].as_u64().unwrap_or(1);
            self.add(at, "empty", Some(json!([])), &[&format!("at least {least} items")]);
        }
        if let (Some(most), Some(first)) = (schema["maxItems"].as_u64(), items.first()) {
            let many = vec![first.clone(); most as usize + 1];
            self.add(at, "too many", Some(json!(many)), &["Too many", &most.to_string()]);
        }
        if let (Some("set" | "map"), Some(first)) = (schema["x-kubernetes-list-type"].as_str(), items.first()) {
            let mut twice = items.to_vec();
            twice.push(first.clone());
            self.add(at, "twice the same", Some(json!(twice)), &["Duplicate value"]);
        }
        if !items.is_empty() {
            self.node(&schema["items"], &child(at, "0"));
        }
    }

    fn map(&mut self, schema: &Value, at: &[String], fields: Option<&Map<String, Value>>) {
        for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.add(&child(at, field), "left out", None, &["Required value"]);
        }
        if schema["x-kubernetes-preserve-unknown-fields"] != true {
            let bogus = child(at, "bogus");
            self.add(&bogus, "unknown", Some(json!(1)), &["unknown field"]);
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            if fields.is_some_and(|f| f.contains_key(name)) {
                self.node(field, &child(at, name));
            }
        }
    }
}

fn child(at: &[String], name: &str) -> Vec<String> {
    let mut path = at.to_vec();
    path.push(name.to_owned());
    path
}

fn pointer(at: &[String]) -> String {
    at.iter().map(|part| format!("/{part}")).collect()
}

/// `spec.sites[0].name`.
fn shown(at: &[String]) -> String {
    let mut text = String::new();
    for part in at {
        match part.parse::<usize>() {
            Ok(index) => text.push_str(&format!("[{index}]")),
            Err(_) if text.is_empty() => text.push_str(part),
            Err(_) => text.push_str(&format!(".{part}")),
        }
    }
    text
}

fn set(object: &mut Value, at: &[String], value: Option<Value>) {
    let Some((last, parents)) = at.split_last() else { return };
    match (object.pointer_mut(&pointer(parents)), value) {
        (Some(Value::Object(fields)), Some(value)) => drop(fields.insert(last.clone(), value)),
        (Some(Value::Object(fields)), None) => drop(fields.remove(last)),
        (Some(Value::Array(items)), Some(value)) => {
            if let Some(item) = last.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                *item = value;
            }
        }
        _ => {}
    }
}
