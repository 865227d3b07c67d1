//! What is known of the machine, and of this process.

use std::fs::read_to_string;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What a reader of the numbers should know of where they come from.
pub(super) fn facts() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = format!("{} {}", std::env::consts::OS, kernel.trim());
    vec![
        format!("{cores} cores, {}", model.map_or(std::env::consts::ARCH, |(_, model)| model)),
        system.trim().to_owned(),
        load("load before"),
    ]
}

/// How busy the machine is: what runs or wants to, on average over 1, 5 and 15 minutes.
pub(super) fn load(what: &str) -> String {
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    let averages: Vec<&str> = load.split(' ').take(3).collect();
    match averages.as_slice() {
        [_, _, _] => format!("{what} {}", averages.join(" ")),
        _ => format!("{what} unknown"),
    }
}

/// Processor time that this process has used.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Memory of this process that is in use, in bytes; `None` where the system does not tell.
pub(super) fn memory() -> Option<f64> {
    let status = read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024.0)
}
