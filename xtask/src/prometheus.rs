//! Prometheus itself, where it can be had: alerts are tested by its `promtool`, and every panel's query is asked of a server
//! that has scraped what our programs serve.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cache, dashboards,
    error::{Error, IoContext, Result},
    generate, metrics, process,
};

/// Debian's package, which has both programs.
const PACKAGE: &str = "prometheus";
/// Scraped so often that a rate has two samples soon.
const EVERY: Duration = Duration::from_secs(1);
/// True once everything was scraped three times.
const SCRAPED: &str = "min(count_over_time(up[5m])) >= 3";
const PATIENCE: Duration = Duration::from_secs(60);

/// A program of Prometheus: installed, or out of Debian's package, unpacked into the cache; none where neither can be had.
pub fn program(name: &str) -> Result<Option<PathBuf>> {
    if process::on_path(name) {
        return Ok(Some(name.into()));
    }
    let folder = cache::sub("prometheus")?;
    let found = folder.join("usr/bin").join(name);
    if found.is_file() {
        return Ok(Some(found));
    }
    if !process::on_path("apt-get") || !process::on_path("dpkg-deb") {
        return Ok(None);
    }
    if process::output(Command::new("apt-get").args(["download", PACKAGE]).current_dir(&folder)).is_err() {
        return Ok(None);
    }
    for entry in fs::read_dir(&folder).at("list", &folder)? {
        let path = entry.at("list", &folder)?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            process::output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&folder))?;
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(found.is_file().then_some(found))
}

/// One alert's test, as `xtask/alerts/CHART.yaml` has it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    at: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    fires: BTreeMap<String, Value>,
    quiet: BTreeMap<String, Value>,
}

/// Tests the rules that a chart renders: each alert fires with its series, with the words that somebody will read, and stays
/// quiet with the others. What is wrong.
pub fn alerts(chart: &str, objects: &[Value]) -> Result<Vec<String>> {
    let Some(rule) = objects.iter().find(|object| object["kind"] == "PrometheusRule") else { return Ok(Vec::new()) };
    let path = generate::root().join("xtask/alerts").join(format!("{chart}.yaml"));
    let text = fs::read_to_string(&path).at("read", &path)?;
    let malformed = |problem: String| Error::Malformed { path: path.clone(), problem };
    let cases: BTreeMap<String, Case> = serde_yaml_ng::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let rules: Vec<&Value> = rule["spec"]["groups"][0]["rules"].as_array().into_iter().flatten().collect();
    let mut faults = Vec::new();
    let mut tests = Vec::new();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap_or_default();
        match cases.get(name) {
            Some(case) => tests.extend(of_alert(name, rule, case)),
            None => faults.push(format!("{chart}: alert {name} has no test in xtask/alerts/{chart}.yaml")),
        }
    }
    let known = |name: &&String| !rules.iter().any(|rule| rule["alert"] == **name);
    faults.extend(
        cases.keys().filter(known).map(|name| format!("{chart}: xtask/alerts tests {name}, which is no alert")),
    );
    let Some(promtool) = program("promtool")? else {
        println!(
            "skipped: promtool is not here and Debian's package {PACKAGE} cannot be fetched, so the alerts of {chart} were not run"
        );
        return Ok(faults);
    };
    let folder = cache::sub("charts")?;
    let (rules, test) = (folder.join(format!("{chart}-rules.json")), folder.join(format!("{chart}-alerts.json")));
    fs::write(&rules, rule["spec"].to_string()).at("write", &rules)?;
    let document = json!({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests});
    fs::write(&test, document.to_string()).at("write", &test)?;
    match process::output(Command::new(promtool).args(["test", "rules"]).arg(&test)) {
        Ok(_) => println!("{chart}: {} alerts fire and stay quiet as they should", cases.len()),
        Err(error) => faults.push(format!("{chart}: {error}")),
    }
    Ok(faults)
}

fn of_alert(name: &str, rule: &Value, case: &Case) -> [Value; 2] {
    let mut labels = json!(case.labels);
    labels["severity"] = rule["labels"]["severity"].clone();
    let said = |text: &Value| {
        let text = text.as_str().unwrap_or_default().to_owned();
        case.labels.iter().fold(text, |text, (label, value)| text.replace(&format!("{{{{ $labels.{label} }}}}"), value))
    };
    let annotations = rule["annotations"].as_object().into_iter().flatten();
    let annotations: BTreeMap<_, _> = annotations.map(|(key, text)| (key, said(text))).collect();
    let test = |series: &BTreeMap<String, Value>, expected: Value| {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let input: Vec<_> =
            series.iter().map(|(series, values)| json!({"series": series, "values": plain(values)})).collect();
        json!({"name": name, "interval": "1m", "input_series": input,
            "alert_rule_test": [{"eval_time": case.at, "alertname": name, "exp_alerts": expected}]})
    };
    [test(&case.fires, json!([{"exp_labels": labels, "exp_annotations": annotations}])), test(&case.quiet, json!([]))]
}

/// Has a Prometheus scrape what programs have written into `folder` (`NAME.txt` each, in the text format), and asks it every
/// panel of every dashboard. A query that it does not take is a fault, and so is one without an answer although all of its
/// metrics are there.
pub fn panels(folder: &Path) -> Result<()> {
    let Some(program) = program("prometheus")? else {
        println!(
            "skipped: Prometheus is not here and Debian's package {PACKAGE} cannot be fetched, so no panel was asked"
        );
        return Ok(());
    };
    let mut served = String::new();
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let text = fs::read_to_string(&path).at("read", &path)?;
        served.push_str(&text);
        files.insert(path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), text);
    }
    let exported = serve(files.clone())?;
    let (server, address) = start(&program, files.keys(), exported)?;
    let end = Instant::now() + PATIENCE;
    while ask(address, SCRAPED) != Ok(1) {
        if Instant::now() > end {
            let logs = cache::sub("prometheus")?;
            return Err(Error::Timeout {
                what: "three scrapes".into(),
                seconds: PATIENCE.as_secs(),
                logs,
                last: String::new(),
            });
        }
        thread::sleep(Duration::from_millis(200));
    }
    let mut faults = Vec::new();
    let (mut asked, mut answered) = (0, 0);
    for board in dashboards::all() {
        for (panel, query) in board.queries() {
            asked += 1;
            let here = metrics::named_in(&query).iter().all(|name| served.contains(name.as_str()));
            match ask(address, &query) {
                Err(error) => faults.push(format!("{}: {panel}: {error}: {query}", board.file)),
                Ok(0) if here => faults.push(format!("{}: {panel}: no answer to {query}", board.file)),
                Ok(0) => println!("no series yet for {panel:?} of {}", board.file),
                Ok(_) => answered += 1,
            }
        }
    }
    drop(server);
    println!("{asked} queries of the dashboards asked of Prometheus, {answered} with an answer");
    if faults.is_empty() { Ok(()) } else { Err(Error::Charts { faults: faults.join("\n  ") }) }
}

/// A Prometheus that goes with its holder.
struct Server {
    child: Child,
    folder: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn start<'a>(program: &Path, targets: impl Iterator<Item = &'a String>, exported: u16) -> Result<(Server, u16)> {
    let folder = cache::sub("prometheus")?.join(format!("run-{}", std::process::id()));
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).at("make folder", &folder)?;
    let jobs: Vec<_> = targets
        .map(|name| json!({"job_name": name, "metrics_path": format!("/{name}"), "static_configs": [{"targets": [format!("127.0.0.1:{exported}")]}]}))
        .collect();
    let config = folder.join("prometheus.json");
    let every = format!("{}s", EVERY.as_secs());
    fs::write(&config, json!({"global": {"scrape_interval": every}, "scrape_configs": jobs}).to_string())
        .at("write", &config)?;
    let port = free_port()?;
    let log = fs::File::create(folder.join("log")).at("write", folder.join("log"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let server = Server { child: command.spawn().at("start", program)?, folder: folder.clone() };
    let end = Instant::now() + PATIENCE;
    while get(port, "/-/ready").is_err() {
        if Instant::now() > end {
            let last = fs::read_to_string(folder.join("log")).unwrap_or_default();
            return Err(Error::Timeout {
                what: "a ready Prometheus".into(),
                seconds: PATIENCE.as_secs(),
                logs: folder,
                last,
            });
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok((server, port))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("listen on", "127.0.0.1:0")?;
    Ok(listener.local_addr().at("listen on", "127.0.0.1:0")?.port())
}

/// Serves texts by their names until this process ends.
fn serve(texts: BTreeMap<String, String>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("listen on", "127.0.0.1:0")?;
    let port = listener.local_addr().at("listen on", "127.0.0.1:0")?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..read]).into_owned();
            let name = asked.split_whitespace().nth(1).unwrap_or_default().trim_start_matches('/');
            let text = texts.get(name).map(String::as_str).unwrap_or_default();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                text.len()
            );
            // Prometheus asks again.
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes())).ok();
        }
    });
    Ok(port)
}

/// How many series answer.
fn ask(port: u16, query: &str) -> std::result::Result<usize, String> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = get(port, &format!("/api/v1/query?query={encoded}"))?;
    let tree: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
    match tree["status"].as_str() {
        Some("success") => Ok(tree["data"]["result"].as_array().map_or(0, Vec::len)),
        _ => Err(tree["error"].as_str().unwrap_or("no reason given").to_owned()),
    }
}

fn get(port: u16, path: &str) -> std::result::Result<String, String> {
    let words = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(words)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(words)?;
    // Version 1.0: the answer comes in one piece and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).map_err(words)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(words)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let failed =
        !(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.0 400") || head.starts_with("HTTP/1.0 422"));
    if failed { Err(head.lines().next().unwrap_or_default().to_owned()) } else { Ok(body.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A panel that asks for what nothing exports shows an empty picture at night. What to scrape comes from the tests
    /// beside an API server (`cargo xtask test --only apiserver`); by itself this has nothing to ask.
    #[test]
    fn what_was_scraped_answers_every_panel() {
        match std::env::var_os("CONSILIUM_FIGURES") {
            Some(folder) => panels(Path::new(&folder)).unwrap(),
            None => println!("not run, since CONSILIUM_FIGURES names no folder with what programs serve"),
        }
    }

    /// An alert's test is no test if both halves are the same, or its words are not those that somebody gets.
    #[test]
    fn an_alert_is_tried_both_ways_with_its_words() {
        let rule = json!({"alert": "SiteSilent", "labels": {"severity": "warning"}, "annotations": {"summary": "Hospital {{ $labels.site }}"}});
        let case: Case =
            serde_yaml_ng::from_str("{at: 5m, labels: {site: alder}, fires: {a: 1x9}, quiet: {a: 0x9}}").unwrap();
        let [fires, quiet] = of_alert("SiteSilent", &rule, &case);
        let expected = json!([{"exp_labels": {"site": "alder", "severity": "warning"}, "exp_annotations": {"summary": "Hospital alder"}}]);
        assert_eq!(fires["alert_rule_test"][0]["exp_alerts"], expected);
        assert_eq!(quiet["alert_rule_test"][0]["exp_alerts"], json!([]));
        assert_ne!(fires["input_series"], quiet["input_series"]);
    }
}
