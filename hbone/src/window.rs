//! How large a tunnel's receive window is while it carries many streams.

/// The window grows to this many times its initial size and no further: the memory that one peer can
/// make us hold for streams that nobody reads.
const MOST_GROWTH: u32 = 4;

/// The connection window that lets every one of `streams` sit unread without stalling another, in
/// bytes: one stream window for each and one to spare, at least `initial`, at most four times that.
///
/// With the default windows (4 MiB, 16 MiB) nothing changes up to three streams, and a dozen unread
/// ones leave room for others.
pub(crate) fn connection_window(initial: u32, stream_window: u32, streams: usize) -> u32 {
    let most = initial.saturating_mul(MOST_GROWTH).min(MAX_WINDOW);
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    stream_window.saturating_mul(streams.saturating_add(1)).clamp(initial.min(most), most)
}

/// The largest flow-control window, RFC 9113 §6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn few_streams_leave_the_announced_window_alone() {
        for streams in 0..=3 {
            assert_eq!(connection_window(16 * MIB, 4 * MIB, streams), 16 * MIB);
        }
    }

    #[test]
    fn a_dozen_unread_streams_leave_room_for_one_more() {
        assert!(connection_window(16 * MIB, 4 * MIB, 13) > 12 * 4 * MIB);
    }

    #[test]
    fn growth_is_bounded_whatever_the_operator_asked_for() {
        assert_eq!(connection_window(16 * MIB, 4 * MIB, usize::MAX), 64 * MIB);
        assert_eq!(connection_window(MAX_WINDOW, MAX_WINDOW, 200), MAX_WINDOW);
        assert_eq!(connection_window(65_535, 0, 200), 65_535);
    }
}
