//! What is done to a study, drawn from a seed: the same seed gives the same schedule on every machine.

use std::fmt::Write as _;

/// Hospitals in every study.
pub const HOSPITALS: usize = 4;
/// Their names.
pub const NAMES: [&str; HOSPITALS] = ["alder", "birch", "cedar", "damson"];

/// What a study is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Rounds that it plans.
    pub rounds: u32,
    /// Its models are scored.
    pub gate: bool,
}

/// What becomes of one call of a hospital.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does not reach the hub.
    LoseRequest,
    /// The hub does it, and the answer is lost.
    LoseReply,
    /// It reaches the hub twice.
    Twice,
    /// The hospital's agent is killed before the call leaves.
    CrashBefore,
    /// The hospital's agent is killed before the answer is there.
    CrashAfter,
    /// The hub takes a turn before it.
    HubFirst,
    /// The hub is killed before it does the call.
    HubCrash,
}

/// What becomes of a write of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Somebody else wrote the object.
    Conflict,
    /// The hub is killed before it is written.
    CrashBefore,
    /// The hub is killed after it is written.
    CrashAfter,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The hub takes a turn, then each hospital and its cluster do all that they have to do once.
    Look,
    /// The hub takes a turn of everything.
    Hub,
    /// A hospital does all that it has to do once.
    Site(usize),
    /// A hospital only hears the hub.
    Hear(usize),
    /// A hospital only takes its steps of an attempt.
    Turns(usize),
    /// A hospital only says what is the case.
    Report(usize),
    /// A hospital's cluster goes on with its tasks.
    Work(usize),
    /// Seconds go by.
    Wait(u32),
    /// The n-th call of a hospital from now on comes to this.
    Call(usize, u8, Fate),
    /// The n-th write of a round from now on comes to this.
    Round(u8, Write),
    /// The n-th write to the hub's store from now on: the hub is killed before or after it.
    Store(u8, Write),
    /// The hub's store takes nothing more, or does again.
    StoreFull(bool),
    /// A hospital's disk takes no vector any more, or does again.
    DiskFull(usize, bool),
    /// A hospital's agent is killed, and begins again.
    Crash(usize),
    /// The hub is killed, and begins again.
    HubCrash,
    /// A second hub begins beside the first; the first goes on without knowing.
    SecondHub,
    /// The one that was first takes a turn.
    OldHub,
    /// The hub has another store: specs and models were put back, its identity and its journal are lost.
    NewEpoch,
    /// A copy of a hospital's volume is made.
    Backup(usize),
    /// The copy takes the volume's place.
    Restore(usize),
    /// A hospital's connection is lost, or back.
    Link(usize, bool),
    /// A hospital says no, or yes again.
    Veto(usize, bool),
    /// The newest assignment but so many comes (again).
    Stale(usize, u8),
    /// The trainer of a hospital's newest try fails.
    TrainerFails(usize),
    /// A hospital trains so many seconds from now on.
    Slow(usize, u32),
    /// The study is suspended, or goes on.
    Suspend(bool),
    /// Somebody cancels the newest round.
    Cancel,
    /// Somebody deletes the newest round.
    DeleteRound,
    /// Governance signs the roster anew, as the next version.
    Roster,
    /// A hospital lies: its next reports say that it is where it is not.
    Lie(usize, u8),
}

/// A generator that is the same everywhere (SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub const fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A study and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The study.
    pub setting: Setting,
    /// In this order.
    pub ops: Vec<Op>,
}

impl Schedule {
    /// The schedule of a number.
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance::new(seed.wrapping_mul(0x0005_deec_e66d) ^ 0xc0_11_5e_ed);
        let setting = Setting { rounds: 1 + chance.below(2) as u32, gate: chance.below(4) == 0 };
        // A schedule is about a few kinds of trouble, or none of them would get far.
        let kinds: Vec<u64> = (0..1 + chance.below(4)).map(|_| chance.below(KINDS)).collect();
        let often = 3 + chance.below(10);
        let length = 20 + chance.below(50);
        let ops = (0..length).map(|_| match chance.below(often) {
            0 => {
                let kind = kinds[chance.below(kinds.len() as u64) as usize];
                trouble(&mut chance, kind)
            }
            _ => ordinary(&mut chance),
        });
        Self { setting, ops: ops.collect() }
    }

    /// As the body of a test.
    pub fn to_test(&self, id: u64) -> String {
        let mut text = format!(
            "#[test]\nfn schedule_{id}() {{\n    use consilium_simulation::schedule::{{Fate, Op, Schedule, Setting, Write}};\n    let setting = Setting {{ rounds: {}, gate: {} }};\n    let ops = vec![\n",
            self.setting.rounds, self.setting.gate
        );
        for op in &self.ops {
            let _ = writeln!(text, "        {},", op.code());
        }
        text + "    ];\n    consilium_simulation::run(&Schedule { setting, ops }).unwrap();\n}\n"
    }
}

impl Op {
    /// As Rust.
    fn code(&self) -> String {
        let text = format!("{self:?}");
        let named =
            ["LoseRequest", "LoseReply", "Twice", "CrashBefore", "CrashAfter", "HubFirst", "HubCrash", "Conflict"];
        let of = match self {
            Self::Call(..) => "Fate::",
            Self::Round(..) | Self::Store(..) => "Write::",
            _ => return format!("Op::{text}"),
        };
        let name = named.into_iter().find(|name| text.ends_with(&format!(" {name})"))).unwrap_or_default();
        format!("Op::{}", text.replace(&format!(" {name})"), &format!(" {of}{name})")))
    }
}

fn ordinary(chance: &mut Chance) -> Op {
    let site = chance.below(HOSPITALS as u64) as usize;
    match chance.below(16) {
        0..=6 => Op::Look,
        7 => Op::Hub,
        8 | 9 => Op::Site(site),
        10 => Op::Hear(site),
        11 => Op::Turns(site),
        12 => Op::Report(site),
        13 | 14 => Op::Work(site),
        _ => Op::Wait(chance.one(&[1, 5, 30, 60, 301])),
    }
}

const KINDS: u64 = 18;

fn trouble(chance: &mut Chance, kind: u64) -> Op {
    let site = chance.below(HOSPITALS as u64) as usize;
    let on = chance.below(2) == 0;
    let writes = [Write::Conflict, Write::CrashBefore, Write::CrashAfter];
    match kind {
        0 => Op::Call(site, chance.below(6) as u8, Fate::LoseRequest),
        1 => Op::Call(site, chance.below(6) as u8, chance.one(&[Fate::LoseReply, Fate::Twice])),
        2 => Op::Call(site, chance.below(6) as u8, chance.one(&[Fate::CrashBefore, Fate::CrashAfter])),
        3 => Op::Call(site, chance.below(6) as u8, chance.one(&[Fate::HubFirst, Fate::HubCrash])),
        4 => Op::Round(chance.below(3) as u8, chance.one(&writes)),
        5 => Op::Store(chance.below(12) as u8, chance.one(&writes[1..])),
        6 => Op::StoreFull(on),
        7 => Op::DiskFull(site, on),
        8 => chance.one(&[Op::Crash(site), Op::HubCrash]),
        9 => chance.one(&[Op::SecondHub, Op::OldHub, Op::OldHub]),
        10 => Op::NewEpoch,
        11 => chance.one(&[Op::Backup(site), Op::Restore(site)]),
        12 => Op::Link(site, on),
        13 => Op::Veto(site, on),
        14 => Op::Stale(site, chance.below(4) as u8),
        15 => chance.one(&[Op::TrainerFails(site), Op::Slow(site, 3600), Op::Slow(site, 50_000), Op::Slow(site, 10)]),
        16 => chance.one(&[Op::Suspend(on), Op::Cancel, Op::DeleteRound, Op::Suspend(false)]),
        _ => chance.one(&[Op::Roster, Op::Lie(site, 0), Op::Lie(site, 1), Op::Lie(site, 2)]),
    }
}
