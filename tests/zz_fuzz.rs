#![allow(clippy::unwrap_used)]
mod common;
use activation_store::*;
use common::rows;
use std::sync::atomic::*;
use std::sync::*;
use std::thread;
use std::time::*;
struct Rng(u64);
impl Rng { fn next(&mut self, n: u64) -> u64 { self.0 ^= self.0 << 13; self.0 ^= self.0 >> 7; self.0 ^= self.0 << 17; (self.0 >> 11) % n } }
fn one(seed: u64) {
    let mut r = Rng(seed.wrapping_mul(0x9E3779B97F4A7C15) | 1);
    let bs = 1 + r.next(12) as usize;
    let window = bs * (1 + r.next(12) as usize);
    let ready = 1 + r.next(3) as usize;
    let when = [WhenFull::Wait, WhenFull::Wait, WhenFull::DropOldest, WhenFull::Reject][r.next(4) as usize];
    let merge = [Merge::Arrival, Merge::RoundRobin][r.next(2) as usize];
    let store = RingStore::builder().component("a", 3).component("b", 1).batch_size(bs).window(window).ready_frames(ready)
        .queue_rows(1 + r.next(60) as usize).when_full(when).merge(merge).drop_last(r.next(4) == 0).seed(seed).build().unwrap();
    let dir = std::path::PathBuf::from(format!("/dev/shm/fuzz/{}-{seed}", std::process::id()));
    let served = Arc::new(Mutex::new(Vec::<usize>::new()));
    let n_lanes = 1 + r.next(3) as usize;
    let n_cons = 1 + r.next(2) as usize;
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let consumers: Vec<_> = (0..n_cons).map(|_| store.minibatches()).collect();
    for (c, mut m) in consumers.into_iter().enumerate() {
        let served = served.clone();
        let mut r = Rng(seed * 31 + c as u64 + 7);
        let dir = dir.clone();
        let leave = r.next(8) == 0;
        threads.push(thread::spawn(move || {
            let mut kept = Vec::new();
            let mut n = 0;
            loop {
                if r.next(10) == 0 { let _ = m.state().map(|s| s.to_bytes()); }
                if r.next(6) == 0 { let f = if r.next(2) == 0 { Form::Full } else { Form::Light }; if let Ok(h) = m.snapshot(&dir, f) { if r.next(2) == 0 { let _ = h.wait(); } } }
                if r.next(20) == 0 { kept.clear(); }
                n += 1;
                if leave && n > 20 { return; }
                let next = if r.next(2) == 0 { m.next_timeout(Duration::from_millis(r.next(3))) } else { m.next_timeout(Duration::from_secs(40)) };
                match next {
                    Ok(Some(b)) => {
                        let a = b.view::<f32>("a").unwrap(); let bb = b.view::<f32>("b").unwrap();
                        let mut s = served.lock().unwrap();
                        for i in 0..b.rows() { assert_eq!(a[[i, 0]], bb[[i, 0]]); assert_eq!(a[[i,0]], a[[i,2]]); s.push(a[[i, 0]] as usize); }
                        drop(s);
                        if r.next(4) == 0 { kept.push(b); }
                    }
                    Ok(None) => return,
                    Err(e) if e.is_timeout() => {}
                    Err(e) => { assert!(!e.is_poisoned(), "{e}"); return; }
                }
            }
        }));
    }
    for lane in 0..n_lanes {
        let p = store.producer().unwrap();
        let mut r = Rng(seed * 17 + lane as u64 + 3);
        threads.push(thread::spawn(move || {
            let mut at = lane * 100_000;
            for _ in 0..40 {
                let n = r.next(15) as usize;
                let res = match r.next(4) {
                    0 => p.extend_pass([("a", rows(at..at + n, 3)), ("b", rows(at..at + n, 1))]).map(|h| { if n % 3 == 0 { let _ = h.wait(); } }).map_err(|e| e.error),
                    1 => p.extend_pass_blocking([("b", rows(at..at + n, 1)), ("a", rows(at..at + n, 3))]).map(drop).map_err(|e| e.error),
                    2 => {
                        match p.extend(rows(at..at + n, 3), "a") {
                            Ok(h) => { drop(h); match p.extend(rows(at..at + n, 1), "b") { Ok(h) => { drop(h); Ok(()) } Err(e) => { assert!(!e.error.is_full(), "{}", e.error); Err(e.error) } } }
                            Err(e) => Err(e.error),
                        }
                    }
                    _ => { let mut pass = p.begin_pass(); pass.put("a", rows(at..at + n, 3)).unwrap(); if r.next(5) == 0 { drop(pass); Ok(()) } else { pass.put("b", rows(at..at + n, 1)).unwrap(); pass.commit_blocking().map(drop).map_err(|e| e.error) } }
                };
                match res { Ok(()) => at += n, Err(e) if e.is_full() => { } Err(e) if e.is_closed() => return, Err(e) => panic!("{e}") }
            }
        }));
    }
    {
        let store = store.clone(); let stop = stop.clone();
        let mut r = Rng(seed * 13 + 5);
        threads.push(thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                match r.next(60) {
                    0 => store.empty(),
                    1 => { let _ = store.get(0..3); }
                    2 => { let _ = store.get(0); }
                    3 => { let _ = store.flush().wait(); }
                    4 => { common::assert_adds_up(&store.stats()); }
                    5 => { let _ = store.len(); }
                    6 if r.next(30) == 0 => store.close(),
                    7 if r.next(60) == 0 => { let _ = store.close_with("bad"); }
                    8 if r.next(60) == 0 => store.abort(),
                    _ => thread::yield_now(),
                }
            }
        }));
    }
    let other = threads.pop().unwrap();
    let producers = threads.split_off(n_cons);
    for t in producers { t.join().unwrap(); }
    store.close();
    for t in threads { t.join().unwrap(); }
    stop.store(true, Ordering::SeqCst);
    other.join().unwrap();
    let stats = store.stats();
    common::assert_adds_up(&stats);
    let mut s = served.lock().unwrap().clone();
    let n = s.len();
    assert_eq!(n as u64, stats.components[0].served, "{stats:?}");
    s.sort(); s.dedup();
    assert_eq!(s.len(), n, "twice");
    drop(store);
    let _ = std::fs::remove_dir_all(dir);
}
#[test]
fn fuzz() {
    std::fs::create_dir_all("/dev/shm/fuzz").unwrap();
    let base: u64 = std::env::var("BASE").map_or(1, |b| b.parse().unwrap());
    let start = Instant::now();
    let secs: u64 = std::env::var("SECS").map_or(20, |b| b.parse().unwrap());
    let mut n = 0;
    for seed in base.. {
        if start.elapsed().as_secs() > secs { break; }
        n += 1;
        let (tx, rx) = mpsc::channel();
        thread::spawn(move || { let r = std::panic::catch_unwind(|| one(seed)); let _ = tx.send(r.is_ok()); });
        match rx.recv_timeout(Duration::from_secs(60)) { Ok(true) => {} Ok(false) => panic!("seed {seed}"), Err(_) => { eprintln!("HANG seed {seed} pid {}", std::process::id()); thread::sleep(Duration::from_secs(3600)); } }
    }
    eprintln!("{n} rounds");
}
