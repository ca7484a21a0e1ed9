//! A cluster's firewall: the templates of `tests/cluster/nft` with this cluster's addresses, and its counters.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path, process::Command};

use serde::Deserialize;

use super::{
    AGENT_SUBNET, GATEWAY_PORT, HUB, POD_SUBNETS, Role, Site, TASK_PORT, TASK_SERVICE, TASK_SUBNET, net::Netns,
};
use crate::{
    error::{Error, IoContext, Result},
    process,
};

const NODE: &str = include_str!("../../../tests/cluster/nft/node.nft");
const HOSPITAL: &str = include_str!("../../../tests/cluster/nft/hospital.nft");
const HUB_RULES: &str = include_str!("../../../tests/cluster/nft/hub.nft");

/// What a named counter of the firewall has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// The rules of one cluster as `nft -f` reads them.
pub(super) fn rules(ip: Ipv4Addr, role: Role) -> String {
    let definitions: [(&str, String); 7] = [
        ("hub", Ipv4Addr::to_string(&HUB)),
        ("gateway_port", GATEWAY_PORT.to_string()),
        ("inside", format!("{{ {ip}, {POD_SUBNETS} }}")),
        ("tasks", TASK_SUBNET.to_owned()),
        ("agent", AGENT_SUBNET.to_owned()),
        ("task_service", TASK_SERVICE.to_string()),
        ("task_port", TASK_PORT.to_string()),
    ];
    let mut rules: String = definitions.iter().map(|(name, value)| format!("define {name} = {value}\n")).collect();
    rules.push_str(NODE);
    rules.push_str(match role {
        Role::Hub => HUB_RULES,
        Role::Hospital => HOSPITAL,
    });
    rules
}

/// Loads the rules unless exactly these are loaded (`record` is where the last loaded ones are kept), since loading them
/// sets the counters to nought.
pub(super) fn ensure(netns: &Netns, site: &Site, record: &Path) -> Result<()> {
    let rules = rules(site.ip, site.role);
    let loaded = process::output(netns.command("nft").args(["list", "table", "inet", "consilium"])).is_ok();
    if loaded && fs::read_to_string(record).is_ok_and(|last| last == rules) {
        return Ok(());
    }
    process::output_with_input(netns.command("nft").args(["-f", "-"]), rules.as_bytes())?;
    fs::write(record, rules).at("write", record)
}

/// The named counters of the firewall, by name.
pub(super) fn counters(mut nft: Command) -> Result<BTreeMap<String, Counter>> {
    let output = process::output(nft.args(["--json", "list", "counters", "table", "inet", "consilium"]))?;
    parse_counters(&output)
        .map_err(|error| Error::Malformed { path: "nft --json list counters".into(), problem: error.to_string() })
}

fn parse_counters(output: &str) -> serde_json::Result<BTreeMap<String, Counter>> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<BTreeMap<String, serde_json::Value>>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        #[serde(flatten)]
        counter: Counter,
    }
    let listing: Listing = serde_json::from_str(output)?;
    let counters = listing.nftables.into_iter().filter_map(|mut object| object.remove("counter"));
    counters.map(|value| serde_json::from_value(value).map(|named: Named| (named.name, named.counter))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SELF: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 2);

    /// The lines that keep scans in a hospital: were one lost in an edit, everything would still seem to work.
    #[test]
    fn a_hospital_lets_nothing_in_and_only_the_agent_out() {
        let rules = rules(SELF, Role::Hospital);
        for line in [
            "define hub = 172.31.77.1",
            "define gateway_port = 30443",
            "define agent = 10.88.2.0/24",
            "define inside = { 172.31.77.2, 10.88.0.0/22 }",
            "counter name outside_to_inside_dropped drop",
            "ip saddr $agent ip daddr $hub tcp dport $gateway_port counter name agent_to_hub accept",
            "counter name pod_to_outside_rejected goto refuse",
            r#"oifname "e0" counter name host_to_outside_rejected goto refuse"#,
        ] {
            assert!(rules.contains(line), "no `{line}` in:\n{rules}");
        }
        assert!(!rules.contains("hospital_to_gateway"));
    }

    /// A hospital must not be able to reach the hub's API server even if its own firewall is off.
    #[test]
    fn the_hub_lets_in_the_gateway_port_alone() {
        let rules = rules(SELF, Role::Hub);
        assert!(rules.contains("ct original proto-dst $gateway_port counter name hospital_to_gateway accept"));
        assert!(!rules.contains("agent_to_hub"));
    }

    /// Every counter that a rule counts into must exist, or nft refuses the file at `up`.
    #[test]
    fn counters_are_declared() {
        for role in [Role::Hub, Role::Hospital] {
            let rules = rules(SELF, role);
            for name in rules.split("counter name ").skip(1).filter_map(|rest| rest.split_whitespace().next()) {
                assert!(rules.contains(&format!("counter {name} {{}}")), "counter {name} is used and not declared");
            }
        }
    }

    /// The e2e's proof that only the agent crosses rests on this reading.
    #[test]
    fn counters_are_read_by_name() {
        let output = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"family": "inet", "name":
            "agent_to_hub", "table": "consilium", "handle": 3, "packets": 7, "bytes": 420}}]}"#;
        let counters = parse_counters(output).unwrap();
        assert_eq!(counters["agent_to_hub"], Counter { packets: 7, bytes: 420 });
    }
}
