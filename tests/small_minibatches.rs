//! Promise 7: minibatches of a few rows share a frame, are mixed, and lose nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use activation_store::{RingStore, RingStoreBuilder, WhenFull};
use common::{LIMIT, assert_adds_up, assert_exactly, drain, ids, rows, watchdog};

fn builder(batch_size: usize, window: usize) -> RingStoreBuilder {
    RingStore::builder().component("a", 2).component("b", 1).batch_size(batch_size).window(window).queue_rows(64)
}

fn write(store: RingStore, n: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for at in (0..n).step_by(10) {
            let end = (at + 10).min(n);
            store.extend_pass_blocking([("b", rows(at..end, 1)), ("a", rows(at..end, 2))]).unwrap();
        }
    })
}

#[test]
fn every_row_is_served_once_in_minibatches_of_the_configured_size() {
    for (batch_size, window) in [(1, 1000), (1, 3), (2, 50), (7, 91), (32, 4096), (63, 600)] {
        for drop_last in [false, true] {
            watchdog(move || {
                let n = 3011;
                let store = builder(batch_size, window).drop_last(drop_last).build().unwrap();
                let mut minibatches = store.minibatches();
                let monitor = store.monitor();
                let writing = write(store, n);
                let mut served = Vec::new();
                for (number, minibatch) in minibatches.blocking().enumerate() {
                    let minibatch = minibatch.unwrap();
                    assert_eq!(minibatch.ordinal(), number as u64);
                    assert_eq!(ids(&minibatch, 0), ids(&minibatch, 1), "components are not aligned");
                    served.push(ids(&minibatch, 0));
                }
                writing.join().unwrap();
                let partial = served.iter().filter(|ids| ids.len() != batch_size).count();
                let left = n % batch_size;
                assert_eq!(partial, usize::from(left > 0 && !drop_last));
                let lost = if drop_last { left } else { 0 };
                assert_eq!(served.iter().map(Vec::len).sum::<usize>(), n - lost);
                if lost == 0 {
                    assert_exactly(0..n, &served);
                }
                assert_eq!(monitor.stats().components[0].dropped.last, lost as u64);
                assert_adds_up(&monitor.stats());
            });
        }
    }
}

/// Compares the mean distance between rows that are served one after the other with the window. It is 0 for a FIFO, and a third for
/// random rows.
#[test]
fn a_minibatch_of_one_row_is_a_random_row_of_the_window() {
    for (batch_size, window) in [(1, 1024), (2, 1024), (4, 512), (7, 700), (32, 4096)] {
        watchdog(move || {
            let n = 12 * window;
            let store = builder(batch_size, window).build().unwrap();
            let mut minibatches = store.minibatches();
            let writing = write(store, n);
            let served = drain(&mut minibatches).concat();
            writing.join().unwrap();
            let steady = &served[2 * window..served.len() - 2 * window];
            let apart: usize = steady.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
            let apart = apart as f64 / (steady.len() - 1) as f64 / window as f64;
            assert!(apart > 0.25, "minibatches of {batch_size}: neighbours are {apart} of the window apart");
        });
    }
}

/// Several threads change, keep and drop the minibatches of one frame.
#[test]
fn minibatches_that_share_a_frame_do_not_share_rows() {
    watchdog(|| {
        let store = builder(4, 400).build().unwrap();
        let mut minibatches = store.minibatches();
        let writing = write(store, 4000);
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let mut minibatches = minibatches.clone();
                thread::spawn(move || {
                    let (mut kept, mut served) = (Vec::new(), Vec::new());
                    for minibatch in minibatches.blocking() {
                        let mut minibatch = minibatch.unwrap();
                        served.push(ids(&minibatch, 0));
                        let mark = served.len() as f32 + 0.25 * thread as f32;
                        minibatch.view_mut::<f32>("a").unwrap().fill(mark);
                        kept.push((minibatch, mark));
                        if kept.len() > 20 {
                            kept.swap_remove(7);
                        }
                        let is_marked = |(minibatch, mark): &(activation_store::Minibatch, f32)| {
                            minibatch.view::<f32>("a").unwrap().iter().all(|x| x == mark)
                        };
                        assert!(kept.iter().all(is_marked));
                    }
                    served
                })
            })
            .collect();
        let mut served = drain(&mut minibatches);
        served.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
        writing.join().unwrap();
        assert_exactly(0..4000, &served);
    });
}

#[test]
fn a_partly_served_frame_can_be_emptied_read_and_dropped() {
    watchdog(|| {
        for end in 0..4 {
            let store = builder(1, 512).queue_rows(1000).when_full(WhenFull::Wait).build().unwrap();
            let mut minibatches = store.minibatches();
            drop(store.extend_pass([("a", rows(0..400, 2)), ("b", rows(0..400, 1))]).unwrap());
            let kept = minibatches.next_timeout(LIMIT).unwrap().unwrap();
            let id = ids(&kept, 0);
            store.flush().wait().unwrap();
            assert_eq!(store.len(), 399);
            // Only the rows that are left in the frame can be read.
            let mut there: Vec<usize> =
                (0..399).map(|row| store.get((row, 1)).unwrap().iter().map(|&id| id as usize).sum()).collect();
            there.push(id[0]);
            there.sort_unstable();
            assert!(there.into_iter().eq(0..400));
            match end {
                0 => store.empty(),
                1 => store.abort(),
                2 => drop(minibatches.clone()),
                _ => store.close(),
            }
            drop(store);
            let left = drain(&mut minibatches).concat();
            assert_eq!(left.len(), if end < 2 { 0 } else { 399 });
            assert!(!left.contains(&id[0]));
            assert_eq!(ids(&kept, 0), id);
        }
    });
}
