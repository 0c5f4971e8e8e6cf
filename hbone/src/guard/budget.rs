//! What frames cost, what they and time earn, and when it is too much.
//!
//! The unit is what it takes to handle a WINDOW_UPDATE, twice; about a quarter of a microsecond. Figures are far from what peers
//! need that carry connections: Envoy sends a PING in ten seconds and a WINDOW_UPDATE for half a window, and the
//! library that sends the most of them, two for every DATA frame it gets, pays with the bytes it got, or with our writes.
//!
//! | Frame | costs | because |
//! |---|---|---|
//! | DATA | nothing, earns by length | it is what a tunnel is for, and has credit of its own |
//! | DATA, empty or padded, without END_STREAM | 1 | |
//! | HEADERS | 2, given back for a request that is served | there are limits for those |
//! | RST_STREAM | 2 | the request before it was work too |
//! | PRIORITY, frames of unknown kind | 1 | |
//! | WINDOW_UPDATE | 1/2 | |
//! | PING | 4 | we answer |
//! | PING with ACK | 100 | there is one for each of ours, in ten seconds |
//! | SETTINGS | 20 | it is applied to every stream, and we answer |
//! | GOAWAY, PUSH_PROMISE | 20 | once is enough |
//! | CONTINUATION | 4 | a request has a length limit |

use std::cell::Cell;

use tokio::time::Instant;

use super::frames::FrameHead;

/// One unit, in the parts that are counted.
const UNIT: i64 = 1024;

/// What a tunnel has at its start, and at most.
const BURST: i64 = 20_000 * UNIT;

/// What a second earns: a peer that uses it up keeps us busy for a thousandth of the time.
const PER_SECOND: i64 = 4_000 * UNIT;

/// What a byte of payload earns, in either direction: a unit for each KiB.
const PER_BYTE: i64 = 1;

/// What a write of ours earns, which the peer may want to acknowledge however short it was.
const PER_WRITE: i64 = UNIT;

/// Frames of one tunnel that are handled before others have their turn. Large frames reach the engine's own bounds first;
/// of small ones, a reader takes about half as many at a time.
const FRAMES_PER_TURN: u32 = 256;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const PRIORITY: u8 = 2;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const PADDED: u8 = 0x8;

/// Of which kind were the frames that a peer sent too many of: the one that found the budget spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flood {
    /// DATA without data.
    EmptyData,
    /// Requests that were not served.
    Headers,
    /// CONTINUATION.
    Continuation,
    /// RST_STREAM.
    Reset,
    /// SETTINGS.
    Settings,
    /// PING.
    Ping,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// PRIORITY.
    Priority,
    /// Any other.
    Other,
}

/// One tunnel's budget, shared by its transport and its driver.
#[derive(Debug)]
pub(crate) struct Meter {
    /// What is left, in parts of a unit.
    left: Cell<i64>,
    /// Until when time has been credited. Looked at when the rest is spent, so that busy tunnels do not ask for the time.
    credited: Cell<Instant>,
    flood: Cell<Option<Flood>>,
    /// Frames that may still be handled in this turn of the driver.
    turn: Cell<u32>,
}

impl Meter {
    /// A full budget.
    pub(crate) fn new() -> Self {
        Meter {
            left: Cell::new(BURST),
            credited: Cell::new(Instant::now()),
            flood: Cell::new(None),
            turn: Cell::new(FRAMES_PER_TURN),
        }
    }

    /// The driver begins to poll the engine.
    pub(crate) fn begin_turn(&self) {
        self.turn.set(FRAMES_PER_TURN);
    }

    /// Whether others should have their turn.
    pub(super) fn turn_is_over(&self) -> bool {
        self.turn.get() == 0
    }

    /// What the peer floods us with, once the budget is spent.
    pub(crate) fn flood(&self) -> Option<Flood> {
        self.flood.get()
    }

    /// A request has been taken on: gives back what its HEADERS cost.
    pub(crate) fn served(&self) {
        self.earn(HEADERS_COST);
    }

    /// Bytes have been written to the peer.
    pub(super) fn wrote(&self, bytes: usize) {
        self.earn(PER_WRITE + PER_BYTE * bytes as i64);
    }

    /// Charges a frame that came.
    pub(super) fn charge(&self, head: FrameHead) {
        self.turn.set(self.turn.get().saturating_sub(1));
        match cost(head) {
            Cost::Earns(parts) => self.earn(parts),
            Cost::Spends(parts, flood) => self.spend(parts, flood),
        }
    }

    fn earn(&self, parts: i64) {
        self.left.set((self.left.get() + parts).min(BURST));
    }

    fn spend(&self, parts: i64, flood: Flood) {
        self.left.set(self.left.get() - parts);
        if self.left.get() < 0 {
            self.credit_time();
            if self.left.get() < 0 && self.flood.get().is_none() {
                self.flood.set(Some(flood));
            }
        }
    }

    fn credit_time(&self) {
        let now = Instant::now();
        let passed = now.duration_since(self.credited.replace(now)).as_millis();
        let passed = i64::try_from(passed).unwrap_or(i64::MAX).min(1000 * (BURST / PER_SECOND + 1));
        self.earn(passed * PER_SECOND / 1000);
    }
}

enum Cost {
    Earns(i64),
    Spends(i64, Flood),
}

const HEADERS_COST: i64 = 2 * UNIT;

fn cost(head: FrameHead) -> Cost {
    let FrameHead { length, kind, flags } = head;
    match kind {
        DATA if length > 0 && flags & PADDED == 0 => Cost::Earns(PER_BYTE * i64::from(length)),
        // A stream ends once.
        DATA if flags & END_STREAM != 0 => Cost::Earns(0),
        DATA => Cost::Spends(UNIT, Flood::EmptyData),
        HEADERS => Cost::Spends(HEADERS_COST, Flood::Headers),
        PRIORITY => Cost::Spends(UNIT, Flood::Priority),
        RST_STREAM => Cost::Spends(2 * UNIT, Flood::Reset),
        SETTINGS => Cost::Spends(20 * UNIT, Flood::Settings),
        PING if flags & ACK != 0 => Cost::Spends(100 * UNIT, Flood::Ping),
        PING => Cost::Spends(4 * UNIT, Flood::Ping),
        WINDOW_UPDATE => Cost::Spends(UNIT / 2, Flood::WindowUpdate),
        CONTINUATION => Cost::Spends(4 * UNIT, Flood::Continuation),
        GOAWAY | PUSH_PROMISE => Cost::Spends(20 * UNIT, Flood::Other),
        _ => Cost::Spends(UNIT, Flood::Other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn simulated(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(test);
    }

    fn frame(kind: u8, flags: u8, length: u32) -> FrameHead {
        FrameHead { length, kind, flags }
    }

    /// How many of these frames in a row are too many.
    fn too_many(head: FrameHead) -> Option<(u32, Flood)> {
        let meter = Meter::new();
        (1..=100_000).find_map(|count| {
            meter.charge(head);
            meter.flood().map(|flood| (count, flood))
        })
    }

    #[test]
    fn every_frame_that_carries_nothing_comes_to_its_end_and_data_does_not() {
        simulated(async {
            assert_eq!(too_many(frame(DATA, 0, 1)), None);
            assert_eq!(too_many(frame(DATA, END_STREAM, 0)), None);
            assert_eq!(too_many(frame(DATA, 0, 0)), Some((20_001, Flood::EmptyData)));
            assert_eq!(too_many(frame(DATA, PADDED, 5)), Some((20_001, Flood::EmptyData)));
            assert_eq!(too_many(frame(HEADERS, 4, 50)), Some((10_001, Flood::Headers)));
            assert_eq!(too_many(frame(RST_STREAM, 0, 4)), Some((10_001, Flood::Reset)));
            assert_eq!(too_many(frame(PRIORITY, 0, 5)), Some((20_001, Flood::Priority)));
            assert_eq!(too_many(frame(SETTINGS, 0, 0)), Some((1_001, Flood::Settings)));
            assert_eq!(too_many(frame(PING, 0, 8)), Some((5_001, Flood::Ping)));
            assert_eq!(too_many(frame(PING, ACK, 8)), Some((201, Flood::Ping)));
            assert_eq!(too_many(frame(WINDOW_UPDATE, 0, 4)), Some((40_001, Flood::WindowUpdate)));
            assert_eq!(too_many(frame(CONTINUATION, 0, 1)), Some((5_001, Flood::Continuation)));
            assert_eq!(too_many(frame(0xfa, 0, 1)), Some((20_001, Flood::Other)));
        });
    }

    #[test]
    fn time_refills_the_budget_and_no_time_overfills_it() {
        simulated(async {
            let meter = Meter::new();
            for _ in 0..10 {
                for _ in 0..4_000 {
                    meter.charge(frame(PRIORITY, 0, 5));
                }
                advance(Duration::from_secs(1)).await;
            }
            assert_eq!(meter.flood(), None);
            advance(Duration::from_secs(1_000_000)).await;
            for _ in 0..40_100 {
                meter.charge(frame(PRIORITY, 0, 5));
            }
            assert_eq!(meter.flood(), Some(Flood::Priority));
        });
    }

    #[test]
    fn a_receiver_that_credits_every_frame_twice_is_paid_by_what_it_receives() {
        simulated(async {
            let meter = Meter::new();
            for _ in 0..1_000_000 {
                meter.wrote(10);
                meter.charge(frame(WINDOW_UPDATE, 0, 4));
                meter.charge(frame(WINDOW_UPDATE, 0, 4));
            }
            assert_eq!(meter.flood(), None);
        });
    }

    #[test]
    fn answers_of_ours_do_not_pay_for_what_they_answer() {
        simulated(async {
            let meter = Meter::new();
            for _ in 0..10_000 {
                meter.charge(frame(PING, 0, 8));
                meter.wrote(17);
            }
            assert_eq!(meter.flood(), Some(Flood::Ping));
        });
    }

    #[test]
    fn requests_that_are_served_cost_nothing() {
        simulated(async {
            let meter = Meter::new();
            for _ in 0..1_000_000 {
                meter.charge(frame(HEADERS, 4, 50));
                meter.served();
            }
            assert_eq!(meter.flood(), None);
        });
    }
}
