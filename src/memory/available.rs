//! Finds how much memory is available now, from the machine and from the control groups of this process.

use std::path::Path;

/// The bytes that this process can still use without swapping, as Linux reports them. `None` on other systems.
///
/// Memory that a program has mapped but not written to yet still counts as available.
pub(crate) fn available() -> Option<usize> {
    if cfg!(miri) {
        // Miri warns of every file in /proc.
        return None;
    }
    available_by(|path| std::fs::read_to_string(path).ok())
}

/// As [`available`]. `read` returns the text of a file of the operating system.
fn available_by(read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let kibibytes = value(&read("/proc/meminfo".as_ref())?, "MemAvailable:")?;
    let groups = read("/proc/self/cgroup".as_ref()).unwrap_or_default();
    let left = groups.lines().filter_map(|line| {
        // Each line is "number:controllers:/path". In version 2 the controllers are empty.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, version) = match controllers {
            "" => ("/sys/fs/cgroup", &VERSION_2),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", &VERSION_1)
            }
            _ => return None,
        };
        // The groups around a group bound it, too. In a container the path may be the host's. Then only the root exists.
        let group = Path::new(root).join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|group| group.starts_with(root));
        around.filter_map(|group| version.left(group, &read)).min()
    });
    let bytes = left.min().unwrap_or(u64::MAX).min(kibibytes.saturating_mul(1 << 10));
    Some(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The file names of one version of control groups, and the keys in `memory.stat` that count cached files.
struct Version {
    limit: &'static str,
    used: &'static str,
    cached: [&'static str; 2],
}

const VERSION_1: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_active_file", "total_inactive_file"],
};

const VERSION_2: Version =
    Version { limit: "memory.max", used: "memory.current", cached: ["active_file", "inactive_file"] };

impl Version {
    /// The bytes left in a group. `None` if the group has no limit. Cached files count as free, because the system can drop them.
    fn left(&self, group: &Path, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
        let number = |file: &str| read(&group.join(file))?.trim().parse::<u64>().ok();
        let (limit, used) = (number(self.limit)?, number(self.used)?);
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let cached: u64 = self.cached.iter().filter_map(|key| value(&stat, key)).sum();
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    }
}

/// The number after `key` in a text of lines "key number".
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const MEMINFO: (&str, &str) = (
        "/proc/meminfo",
        "MemTotal:       24684084 kB\nMemFree:        13800636 kB\nMemAvailable:   20000000 kB\nBuffers:           61060 kB\n",
    );
    const SYSTEM: usize = 20_000_000 << 10;
    const MIB: usize = 1 << 20;

    fn with(files: &[(&str, &str)]) -> Option<usize> {
        let files: HashMap<&Path, &str> = files.iter().map(|&(path, text)| (Path::new(path), text)).collect();
        available_by(|path| files.get(path).map(|&text| text.to_owned()))
    }

    #[test]
    fn without_groups_the_machine_sets_the_limit() {
        assert_eq!(with(&[MEMINFO]), Some(SYSTEM));
        assert_eq!(with(&[MEMINFO, ("/proc/self/cgroup", "0::/user.slice\n")]), Some(SYSTEM));
        assert_eq!(with(&[MEMINFO, ("/proc/self/cgroup", "no such line\n")]), Some(SYSTEM));
    }

    #[test]
    fn without_figures_from_the_system_nothing_is_known() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("/proc/meminfo", "MemTotal: 1 kB\n")]), None);
        assert_eq!(with(&[("/proc/meminfo", "MemAvailable: many kB\n")]), None);
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_and_cached_files_do_not() {
        let files = |outer: &'static str| {
            [
                MEMINFO,
                ("/proc/self/cgroup", "0::/jobs/7\n"),
                ("/sys/fs/cgroup/jobs/7/memory.max", "1073741824\n"),
                ("/sys/fs/cgroup/jobs/7/memory.current", "805306368\n"),
                (
                    "/sys/fs/cgroup/jobs/7/memory.stat",
                    "anon 1\nfile 3\nactive_file 104857600\ninactive_file 157286400\n",
                ),
                ("/sys/fs/cgroup/jobs/memory.max", outer),
                ("/sys/fs/cgroup/jobs/memory.current", "943718400\n"),
            ]
        };
        assert_eq!(with(&files("max\n")), Some((1024 - 768 + 250) * MIB));
        assert_eq!(with(&files("1048576000\n")), Some(100 * MIB));
        // More is in use than the limit, which was lowered.
        assert_eq!(with(&files("1\n")), Some(0));
    }

    #[test]
    fn a_container_of_version_1_finds_its_limit_at_the_root() {
        let files = [
            MEMINFO,
            ("/proc/self/cgroup", "9:name=systemd:/docker/4f\n4:cpuset,memory:/docker/4f\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/memory.stat", "cache 9\ninactive_file 9\ntotal_inactive_file 1048576\n"),
        ];
        assert_eq!(with(&files), Some(1025 * MIB));
    }

    #[test]
    fn no_limit_in_version_1_is_a_large_number() {
        let files = [
            MEMINFO,
            ("/proc/self/cgroup", "4:memory:/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "7783788544\n"),
        ];
        assert_eq!(with(&files), Some(SYSTEM));
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[cfg_attr(miri, ignore = "reads the machine's files")]
    fn this_machine_has_available_memory() {
        assert!(available().is_some_and(|bytes| bytes > 0 && bytes < usize::MAX));
    }
}
