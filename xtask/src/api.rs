//! `docs/api.md`: every field of every kind, from the schemas that the API server goes by.

use consilium_crds::schema;
use serde_json::Value;

/// The page.
pub fn page() -> String {
    let mut page = "<!-- Written by `cargo xtask generate`. Do not edit. -->\n# API reference\n\n`consilium.health/v1alpha1`. \
        What is bold must be there. `kubectl explain KIND.spec` says the same on a cluster; [conditions](conditions.md) have \
        a page of their own, and so has [what may change](versioning.md).\n"
        .to_owned();
    for crd in schema::all() {
        let names = &crd.spec.names;
        let short = names.short_names.iter().flatten().map(|name| format!(", `{name}`")).collect::<String>();
        page.push_str(&format!("\n## {}\n\n`{}`{short}; {}.", names.kind, names.plural, crd.spec.scope.to_lowercase()));
        let Some(version) = crd.spec.versions.first() else { continue };
        let root = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let root = root.and_then(|root| serde_json::to_value(root).ok()).unwrap_or_default();
        page.push_str(&format!(" {}\n", sentence(&root)));
        for rule in root["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let words = rule["message"].as_str().or(rule["fieldPath"].as_str()).unwrap_or_default();
            page.push_str(&format!(
                "\n- Checked: `{}` ({})\n",
                cell(rule["rule"].as_str().unwrap_or_default()),
                cell(words)
            ));
        }
        page.push_str("\n| field | type | meaning |\n|---|---|---|\n");
        for part in ["spec", "status"] {
            walk(&mut page, part, &root["properties"][part], false);
        }
    }
    page
}

fn walk(page: &mut String, path: &str, schema: &Value, required: bool) {
    if schema.is_null() {
        return;
    }
    let name = if required { format!("**`{path}`**") } else { format!("`{path}`") };
    page.push_str(&format!("| {name} | {} | {} |\n", kind(schema), sentence(schema)));
    // Kubernetes' own type; its fields are in its own reference.
    if path.ends_with(".conditions") {
        return;
    }
    let (inner, below) = match &schema["items"] {
        Value::Null => (schema, path.to_owned()),
        items => (items, format!("{path}[]")),
    };
    let needs = |name: &str| inner["required"].as_array().into_iter().flatten().any(|needed| needed == name);
    for (name, field) in inner["properties"].as_object().into_iter().flatten() {
        walk(page, &format!("{below}.{name}"), field, needs(name));
    }
}

fn kind(schema: &Value) -> String {
    let of = |schema: &Value| match schema["format"].as_str().filter(|format| *format == "date-time") {
        Some(_) => "time".to_owned(),
        None => schema["type"].as_str().unwrap_or("any").to_owned(),
    };
    let mut text = match &schema["items"] {
        Value::Null => of(schema),
        items => format!("list of {}", of(items)),
    };
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        text = values.join(", ");
    }
    let bounds = [("minimum", "≥"), ("maximum", "≤"), ("maxItems", "at most"), ("default", "default")];
    for (key, word) in bounds {
        if !schema[key].is_null() {
            // Bounds are floats in the schema's own form.
            let whole = schema[key].as_f64().filter(|number| number.fract() == 0.0);
            let value = whole.map_or_else(|| schema[key].to_string(), |number| format!("{number:.0}"));
            text.push_str(&format!(", {word} {}", cell(&value)));
        }
    }
    text
}

fn sentence(schema: &Value) -> String {
    cell(schema["description"].as_str().unwrap_or_default())
}

fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field that is missing here is one that nobody sets; a field without words is one that everybody asks about.
    #[test]
    fn every_field_of_a_study_is_there_and_has_words() {
        let page = page();
        for line in [
            "| **`spec.rounds.quorum`** | integer, ≥ 3, ≤ 200 |",
            "| `spec.sites[].required` | boolean |",
            "## ModelHazard",
        ] {
            assert!(page.contains(line), "{line}");
        }
        let bare: Vec<_> = page.lines().filter(|line| line.starts_with("| ") && line.ends_with("|  |")).collect();
        assert!(bare.len() <= 4, "{bare:#?}");
    }
}
