//! The content of a snapshot, in the form in which it is written. `docs/resume.md` describes every field.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dealing::dealer::DEALING_VERSION;
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::ring_store::snapshot::journal::{Journal, Log, Segment};
use crate::ring_store::snapshot::passes::LaneLog;
use crate::rows::element::DType;
use crate::rows::layout::Component;

/// The name of the format, which the file contains.
pub(crate) const FORMAT: &str = "activation-store snapshot";

/// The version of the format that the crate writes.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// The oldest version of the format that the crate reads.
pub(crate) const OLDEST_VERSION: u32 = 1;

/// The versions. They are read before the rest of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    pub(crate) format: String,
    pub(crate) format_version: u32,
    pub(crate) dealing_version: u32,
    /// The version of the crate, for people to read.
    pub(crate) crate_version: String,
}

impl Versions {
    pub(crate) fn current() -> Self {
        Versions {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            dealing_version: DEALING_VERSION,
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Body {
    #[serde(flatten)]
    pub(crate) versions: Versions,
    /// What the run is known by: a resumed store has the same. Snapshots of earlier releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<String>,
    /// The replay that fills the store, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<ReplayBody>,
    /// The number of minibatches that consumers had taken: K.
    pub(crate) minibatches: u64,
    pub(crate) config: ConfigBody,
    pub(crate) position: PositionBody,
    /// The lane that has the next turn, under `round_robin`.
    pub(crate) turn: Option<TurnBody>,
    /// The lanes that were open, or have rows in the log.
    pub(crate) lanes: Vec<LaneBody>,
    /// The names of the other lanes that had ended.
    #[serde(default)]
    pub(crate) ended_names: EndedNames,
    /// In version 1: all lanes that had ended and have a name, also those in `lanes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ended_lanes: Vec<EndedLane>,
    /// The number of lanes opened so far, which is also the number of the next lane.
    pub(crate) lanes_opened: u64,
    /// How many of these lanes have no name, without the store's own lane.
    #[serde(default)]
    pub(crate) unnamed_lanes: u64,
    pub(crate) log: LogBody,
    pub(crate) stats: StatsBody,
    /// Where the rows are. `None` in a light snapshot.
    pub(crate) saved: Option<SavedBody>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigBody {
    pub(crate) components: Vec<ComponentBody>,
    pub(crate) batch_size: usize,
    /// The rows of the window, a multiple of the rows of a frame.
    pub(crate) window: usize,
    pub(crate) ready_frames: usize,
    pub(crate) queue_rows: usize,
    pub(crate) max_skew: usize,
    pub(crate) seed: u64,
    pub(crate) drop_last: bool,
    pub(crate) when_full: String,
    pub(crate) merge: String,
}

impl ConfigBody {
    /// The first setting in which a resumed store differs from the saved one, with both values. They may differ in `ready_frames` and
    /// `queue_rows`.
    pub(crate) fn differs_from(&self, saved: &ConfigBody) -> Option<(&'static str, [String; 2])> {
        fn differs<T: PartialEq>(
            name: &'static str,
            of: [&T; 2],
            say: impl Fn(&T) -> String,
        ) -> Option<(&'static str, [String; 2])> {
            (of[0] != of[1]).then(|| (name, of.map(say)))
        }
        let component = |c: &ComponentBody| format!("{:?}: {} × {}", c.name, c.features, c.dtype);
        let components = move |all: &Vec<ComponentBody>| all.iter().map(component).collect::<Vec<_>>().join(", ");
        differs("components", [&self.components, &saved.components], components)
            .or_else(|| differs("batch_size", [&self.batch_size, &saved.batch_size], usize::to_string))
            .or_else(|| differs("window", [&self.window, &saved.window], usize::to_string))
            .or_else(|| differs("max_skew", [&self.max_skew, &saved.max_skew], usize::to_string))
            .or_else(|| differs("seed", [&self.seed, &saved.seed], u64::to_string))
            .or_else(|| differs("drop_last", [&self.drop_last, &saved.drop_last], bool::to_string))
            .or_else(|| differs("when_full", [&self.when_full, &saved.when_full], String::clone))
            .or_else(|| differs("merge", [&self.merge, &saved.merge], String::clone))
    }
}

/// Which rows a replay gives, and in which order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplayBody {
    /// The version of the rule for the order of shards.
    pub(crate) version: u32,
    /// Differs for replays of other rows or with other settings.
    pub(crate) fingerprint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ComponentBody {
    pub(crate) name: String,
    pub(crate) features: usize,
    pub(crate) dtype: String,
}

impl From<&Component> for ComponentBody {
    fn from(component: &Component) -> Self {
        ComponentBody {
            name: component.name.to_string(),
            features: component.features,
            dtype: component.dtype.to_string(),
        }
    }
}

impl ComponentBody {
    pub(crate) fn dtype(&self) -> Option<DType> {
        self.dtype.parse().ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PositionBody {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// The rows dealt since the ring was last emptied.
    pub(crate) dealt: u64,
    /// The number of the first minibatch since the ring was last emptied.
    pub(crate) first_minibatch: u64,
    /// The number of the next minibatch to be served.
    pub(crate) next_minibatch: u64,
    /// The number of the first minibatch of the frame that completes next.
    pub(crate) completing_minibatch: u64,
    /// No more rows come and the ring is empty: all rows are served or, in a full snapshot, in ready frames.
    pub(crate) ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TurnBody {
    pub(crate) lane: u64,
    pub(crate) rows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaneBody {
    /// The number of the lane.
    pub(crate) lane: u64,
    #[serde(flatten)]
    pub(crate) log: LaneLog,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedLane {
    pub(crate) lane: u64,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogBody {
    /// The rows dealt between the last emptying of the ring and the first segment.
    pub(crate) from: u64,
    /// Each segment as `[lane, first row, rows]`.
    pub(crate) segments: Vec<[u64; 3]>,
}

impl LogBody {
    pub(crate) fn segments(&self) -> VecDeque<Segment> {
        self.segments.iter().map(|&[lane, first_row, rows]| Segment { lane, first_row, rows }).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatsBody {
    pub(crate) components: Vec<ComponentStatsBody>,
    pub(crate) served_rows: u64,
    /// The rows that the store holds with all their components, and has not served.
    pub(crate) whole_rows: u64,
    pub(crate) waited_for_consumers: Duration,
    pub(crate) waited_for_producers: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ComponentStatsBody {
    pub(crate) resent: u64,
    pub(crate) dropped_oldest: u64,
    pub(crate) dropped_emptied: u64,
    pub(crate) dropped_aborted: u64,
    pub(crate) dropped_last: u64,
    pub(crate) dropped_unmatched: u64,
    /// Zero in a snapshot of a version that did not count them.
    #[serde(default)]
    pub(crate) overflowed: u64,
    #[serde(default)]
    pub(crate) not_finite: u64,
}

/// The rows of a full snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedBody {
    /// The frames, in the order in which the files have their rows.
    pub(crate) frames: Vec<SavedFrame>,
    /// One file for each component.
    pub(crate) files: Vec<SavedFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SavedFrame {
    /// The unserved rows of a full frame, in order, and the number of their first minibatch.
    Ready { first_minibatch: u64, rows: usize },
    /// The rows of an open frame, in the order in which they were dealt to it.
    Open { frame: usize, rows: usize },
}

impl SavedFrame {
    pub(crate) fn rows(self) -> usize {
        match self {
            SavedFrame::Ready { rows, .. } | SavedFrame::Open { rows, .. } => rows,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedFile {
    pub(crate) component: usize,
    pub(crate) file: String,
    /// Where the rows start in the file, in bytes.
    pub(crate) offset: u64,
    /// The size of the rows, in bytes.
    pub(crate) bytes: u64,
    /// The checksum of the rows.
    pub(crate) xxh3: String,
}

impl Body {
    pub(crate) fn is_full(&self) -> bool {
        self.saved.is_some()
    }

    /// The number of the first row of a lane that the resumed store must get.
    pub(crate) fn needed(&self, lane: &LaneLog) -> u64 {
        if self.is_full() { lane.end } else { lane.start }
    }

    /// Whether a lane goes on in the resumed store. A lane that had ended goes on if some of its rows are dealt again.
    pub(crate) fn goes_on(&self, lane: &LaneLog) -> bool {
        !lane.ended || self.needed(lane) < lane.end
    }

    /// The lanes that go on.
    pub(crate) fn lanes_that_go_on(&self) -> impl Iterator<Item = &LaneBody> {
        self.lanes.iter().filter(|lane| self.goes_on(&lane.log))
    }

    /// Takes over what the journal says. With `lists_lanes` false, leaves out the lanes, because all of them have ended.
    pub(crate) fn set_log(&mut self, log: Log, lists_lanes: bool) {
        let Log { from, segments, lanes, ended_names } = log;
        let segments = segments.iter().map(|s| [s.lane, s.first_row, s.rows]).collect();
        self.log = LogBody { from, segments };
        if lists_lanes {
            self.lanes = lanes.into_iter().map(|(lane, log)| LaneBody { lane, log }).collect();
        }
        self.ended_names = ended_names;
    }

    /// Brings a body that was read to the version that the crate writes.
    pub(crate) fn upgrade(&mut self) {
        if self.versions.format_version > 1 {
            return;
        }
        self.versions.format_version = FORMAT_VERSION;
        let listed: BTreeSet<u64> = self.lanes.iter().map(|lane| lane.lane).collect();
        let mut named: BTreeSet<u64> = BTreeSet::new();
        for EndedLane { lane, name } in std::mem::take(&mut self.ended_lanes) {
            named.insert(lane);
            if !listed.contains(&lane) {
                self.ended_names.insert(&name);
            }
        }
        named.extend(self.lanes.iter().filter(|lane| lane.log.name.is_some()).map(|lane| lane.lane));
        named.remove(&0);
        let without_name = |before: u64| before.saturating_sub(1).saturating_sub(named.range(..before).count() as u64);
        for LaneBody { lane, log } in &mut self.lanes {
            log.unnamed = without_name(*lane);
        }
        self.unnamed_lanes = without_name(self.lanes_opened);
    }

    pub(crate) fn journal(&self) -> Journal {
        let ended = self.lanes.iter().filter(|lane| !self.goes_on(&lane.log));
        let log = Log {
            from: self.log.from,
            segments: self.log.segments(),
            lanes: ended.map(|lane| (lane.lane, lane.log.clone())).collect(),
            ended_names: self.ended_names.clone(),
        };
        Journal::resumed(self.position.emptied, log)
    }

    /// Says which parts of the body contradict each other. `None` if no parts do.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let Body { position, log, lanes, config, .. } = self;
        let mut ends: BTreeMap<u64, u64> = lanes.iter().map(|lane| (lane.lane, lane.log.start)).collect();
        let mut dealt = log.from;
        for segment in log.segments() {
            let Some(end) = ends.get_mut(&segment.lane) else { return Some("the log names a lane that is not listed") };
            if *end != segment.first_row {
                return Some("the rows of a lane do not follow each other in the log");
            }
            let sums = (end.checked_add(segment.rows), dealt.checked_add(segment.rows));
            let (Some(new_end), Some(sum)) = sums else { return Some("a count of rows is too large") };
            (*end, dealt) = (new_end, sum);
        }
        if dealt != position.dealt {
            return Some("the log does not end where dealing stood");
        }
        if lanes.iter().any(|lane| ends.get(&lane.lane) != Some(&lane.log.end)) {
            return Some("a lane does not end where the log says");
        }
        if let Some(contradiction) = lanes.iter().find_map(|lane| lane.log.contradiction()) {
            return Some(contradiction);
        }
        if self.stats.components.len() != config.components.len() {
            return Some("the number of counts differs from the number of components");
        }
        if position.next_minibatch < position.first_minibatch {
            return Some("it has served fewer minibatches than there were before the ring was last emptied");
        }
        if let Some(saved) = &self.saved
            && saved.files.len() != config.components.len()
        {
            return Some("the number of files differs from the number of components");
        }
        None
    }
}
