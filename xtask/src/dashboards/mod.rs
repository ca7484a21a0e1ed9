//! Grafana's dashboards, as code: what each panel asks and says stands in [`boards`], and the JSON of the charts is made of
//! it. Every query is by cluster, so that one Grafana can look at several federations.

mod boards;

use serde_json::{Value, json};

/// A dashboard.
pub struct Board {
    /// Chart and name of the file: `consilium-hub/dashboards/study.json`.
    pub file: &'static str,
    uid: &'static str,
    title: &'static str,
    about: &'static str,
    variables: &'static [Variable],
    rows: &'static [Row],
}

/// A choice at the top, by the values that a label has.
struct Variable {
    name: &'static str,
    label: &'static str,
    query: &'static str,
}

/// Panels side by side.
struct Row {
    height: u64,
    panels: &'static [Panel],
}

/// One picture.
#[derive(Clone, Copy)]
struct Panel {
    title: &'static str,
    /// What it shows, and what to do when it looks wrong.
    about: &'static str,
    kind: Kind,
    unit: &'static str,
    queries: &'static [Query],
    /// Colours from which values on; the first has none.
    steps: &'static [(Option<f64>, &'static str)],
    /// Words for values.
    words: &'static [(i64, &'static str, &'static str)],
    /// An alert whose runbook is linked.
    runbook: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Kind {
    Stat,
    Lines,
    Bars,
    States,
    Table,
}

/// PromQL, in which `@` stands for the choices of the dashboard, and the name of a line.
type Query = (&'static str, &'static str);

/// Where the runbooks lie.
const RUNBOOKS: &str = "https://github.com/consilium-health/consilium/blob/main/docs/runbooks";

/// All dashboards.
pub fn all() -> &'static [Board] {
    boards::ALL
}

impl Board {
    /// The file, as Grafana reads it.
    pub fn json(&self) -> String {
        let (mut panels, mut y) = (Vec::new(), 0);
        for row in self.rows {
            let width = 24 / row.panels.len() as u64;
            for (at, panel) in (0..).zip(row.panels) {
                let place = json!({"h": row.height, "w": width, "x": at * width, "y": y});
                panels.push(self.panel(panel, panels.len() + 1, &place));
            }
            y += row.height;
        }
        let board = json!({
            "uid": self.uid, "title": self.title, "description": self.about, "schemaVersion": 39, "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"}, "tags": ["consilium"], "timezone": "browser", "graphTooltip": 1,
            "links": [{"type": "dashboards", "tags": ["consilium"], "title": "Consilium", "asDropdown": true,
                "includeVars": true, "keepTime": true}],
            "templating": {"list": self.choices()},
            "panels": panels,
        });
        format!("{board:#}\n")
    }

    /// Every query with the choices at "all", as a check asks them.
    pub fn queries(&self) -> Vec<(&'static str, String)> {
        let panels = self.rows.iter().flat_map(|row| row.panels);
        let asked = |panel: &'static Panel| {
            panel.queries.iter().map(|(query, _)| (panel.title, self.with(query, |_| ".*".into())))
        };
        panels.flat_map(asked).collect()
    }

    fn choices(&self) -> Vec<Value> {
        let mut choices =
            vec![json!({"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"})];
        let cluster =
            Variable { name: "cluster", label: "Cluster", query: "label_values(consilium_build_info, cluster)" };
        for Variable { name, label, query } in std::iter::once(&cluster).chain(self.variables) {
            choices.push(json!({
                "name": name, "label": label, "type": "query", "datasource": source(), "query": {"query": query, "refId": name},
                "definition": query, "refresh": 2, "sort": 1, "multi": true, "includeAll": true,
                // A Prometheus that sets no such label has everything under none.
                "allValue": ".*", "current": {"text": "All", "value": "$__all"},
            }));
        }
        choices
    }

    /// A query with what is chosen in place of `@`.
    fn with(&self, query: &str, value: impl Fn(&str) -> String) -> String {
        let names =
            self.variables.iter().map(|variable| variable.name).filter(|name| query.contains(&format!("@{name}")));
        let mut text = query.to_owned();
        for name in names {
            text = text.replace(&format!("@{name}"), &format!("@,{name}=~\"{}\"", value(name)));
        }
        text.replace('@', &format!("cluster=~\"{}\"", value("cluster")))
    }

    fn panel(&self, panel: &Panel, id: usize, place: &Value) -> Value {
        let targets = panel.queries.iter().zip('A'..).map(|((query, legend), name)| {
            let instant = matches!(panel.kind, Kind::Stat | Kind::Table);
            json!({"refId": name.to_string(), "expr": self.with(query, |name| format!("${name}")), "legendFormat": legend,
                "datasource": source(), "instant": instant, "range": !instant})
        });
        let steps = match panel.steps {
            [] => &[(None, "green")],
            steps => steps,
        };
        let steps: Vec<_> = steps.iter().map(|(value, colour)| json!({"color": colour, "value": value})).collect();
        let words: serde_json::Map<_, _> = panel
            .words
            .iter()
            .zip(0..)
            .map(|((value, text, colour), index)| {
                (value.to_string(), json!({"text": text, "color": colour, "index": index}))
            })
            .collect();
        let mappings = if words.is_empty() { json!([]) } else { json!([{"type": "value", "options": words}]) };
        let link = |alert| json!([{"title": format!("Runbook {alert}"), "url": format!("{RUNBOOKS}/{alert}.md"), "targetBlank": true}]);
        json!({
            "id": id, "title": panel.title, "description": panel.about, "type": panel.kind.name(), "datasource": source(),
            "gridPos": place, "targets": targets.collect::<Vec<_>>(), "options": panel.kind.options(),
            "links": panel.runbook.map_or_else(|| json!([]), link),
            "fieldConfig": {"defaults": {"unit": panel.unit, "mappings": mappings, "custom": panel.kind.custom(),
                "color": {"mode": if panel.steps.is_empty() { "palette-classic" } else { "thresholds" }},
                "thresholds": {"mode": "absolute", "steps": steps}}, "overrides": []},
        })
    }
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Lines | Self::Bars => "timeseries",
            Self::States => "state-timeline",
            Self::Table => "table",
        }
    }

    fn options(self) -> Value {
        match self {
            Self::Stat => {
                json!({"colorMode": "value", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "auto"})
            }
            Self::Lines | Self::Bars => {
                json!({"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}})
            }
            Self::States => json!({"showValue": "auto", "legend": {"displayMode": "list", "placement": "bottom"}}),
            Self::Table => json!({"showHeader": true}),
        }
    }

    fn custom(self) -> Value {
        match self {
            Self::Lines => json!({"drawStyle": "line", "lineWidth": 2, "showPoints": "never", "spanNulls": false}),
            Self::Bars => json!({"drawStyle": "bars", "fillOpacity": 60, "stacking": {"mode": "normal"}}),
            Self::Stat | Self::States | Self::Table => json!({}),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Somebody who looks at night finds at each picture what it shows; two pictures with one number would hide one.
    #[test]
    fn every_panel_says_what_it_shows_and_has_its_place() {
        for board in all() {
            let tree: Value = serde_json::from_str(&board.json()).unwrap();
            let panels = tree["panels"].as_array().unwrap();
            let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
            assert_eq!(ids.len(), panels.len());
            for panel in panels {
                let title = &panel["title"];
                assert!(
                    panel["description"].as_str().is_some_and(|text| text.ends_with('.') && text.len() > 20),
                    "{title}"
                );
                let (x, w) = (panel["gridPos"]["x"].as_u64().unwrap(), panel["gridPos"]["w"].as_u64().unwrap());
                assert!(x + w <= 24, "{title}");
                for target in panel["targets"].as_array().unwrap() {
                    assert!(target["expr"].as_str().unwrap().contains("$cluster"), "{title} asks every cluster");
                }
            }
        }
    }

    /// A choice that a query does not follow shows other people's studies under the chosen name.
    #[test]
    fn a_query_follows_what_is_chosen() {
        let study = all().iter().find(|board| board.uid == "consilium-study").unwrap();
        let query = study.with("sum(a{@study}) / b{@,x=\"1\"}", |name| format!("${name}"));
        assert_eq!(query, "sum(a{cluster=~\"$cluster\",study=~\"$study\"}) / b{cluster=~\"$cluster\",x=\"1\"}");
        assert!(study.queries().iter().all(|(_, query)| !query.contains(['@', '$'])));
    }
}
