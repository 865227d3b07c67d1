//! Processes that never outlive the program that started them.

use std::fmt;
use std::io;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How long a stopped process may go on running.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// A running process: killed when this is dropped, and by the kernel when the program that
/// started it is gone, however it went.
///
/// ```
/// use sync_conformance::process::Process;
///
/// let sleeper = Process::start("sleep", ["600"], |_| {})?;
/// assert!(sleeper.is_running());
/// sleeper.kill()?;
/// assert!(!sleeper.is_running());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Process {
    child: Mutex<Child>,
    pid: Pid,
}

impl Process {
    /// Starts `program`; `prepare` sets what else is to be set, such as redirections.
    ///
    /// # Errors
    /// Those of the operating system; [`io::ErrorKind::NotFound`] where there is no such program.
    pub fn start<I, S>(
        program: &str,
        arguments: I,
        prepare: impl FnOnce(&mut Command),
    ) -> io::Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        // `setpriv` would report a missing program as its own failure, later.
        if !is_program(program) {
            let text = format!("there is no program {program:?}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let mut command = if cfg!(target_os = "linux") {
            if !is_program("setpriv") {
                return Err(io::Error::other("there is no setpriv: `apt-get install util-linux`"));
            }
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", program]);
            command
        } else {
            Command::new(program)
        };
        command.args(arguments);
        prepare(&mut command);
        let child = spawn(command)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the process has no id"))?;
        Ok(Self { child: Mutex::new(child), pid })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has not ended. A stopped process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Kills it with SIGKILL and waits for its end. One that has ended is a success.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn kill(&self) -> io::Result<()> {
        let mut child = self.child();
        child.kill()?;
        child.wait().map(drop)
    }

    /// Stops it with SIGSTOP: it keeps its memory and its connections, and does nothing.
    ///
    /// # Errors
    /// Those of the operating system; also when it has ended.
    pub fn stop(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        // A thread on another core may run on for a moment: what it answers then is no fault.
        let state = format!("/proc/{}/stat", self.id());
        for _ in 0..1_000 {
            match std::fs::read_to_string(&state) {
                Ok(stat) if !stat.contains(") T ") => std::thread::sleep(STOPS_WITHIN / 1_000),
                _ => break,
            }
        }
        Ok(())
    }

    /// Lets a stopped one go on (SIGCONT).
    ///
    /// # Errors
    /// Those of the operating system; also when it has ended.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Those of the operating system; also when the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // Held over the call: as long as nobody has waited for it, its id is nobody else's.
        let mut child = self.child();
        if child.try_wait()?.is_some() {
            return Err(io::Error::other(format!("process {} has ended", self.id())));
        }
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it still runs after `limit`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the process.
    pub async fn ended(&self, limit: Duration) -> io::Result<ExitStatus> {
        let look = async {
            loop {
                if let Some(status) = self.child().try_wait()? {
                    return Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(limit, look).await.unwrap_or_else(|_| {
            let text = format!("process {} still runs after {limit:?}", self.id());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    pub(crate) fn take_pipes(&self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        let mut child = self.child();
        (child.stdin.take(), child.stdout.take())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// Whether `program` is a file, or is found on the `PATH`.
fn is_program(program: &str) -> bool {
    if program.contains('/') {
        return std::path::Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts processes on one thread that never ends: the kernel's "parent" whose death kills a
/// process is the *thread* that started it, and threads of tests come and go.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, incoming) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in incoming {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, child) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_outlives_the_thread_that_asked_for_it() {
        let process = std::thread::spawn(|| Process::start("sleep", ["600"], |_| {}).unwrap());
        let process = process.join().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(process.is_running());
    }

    #[test]
    fn a_missing_program_is_told_at_once() {
        let missing = Process::start("no-such-program-here", [""; 0], |_| {}).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_stopped_process_is_running_and_can_be_killed() {
        let process = Process::start("sleep", ["2"], |_| {}).unwrap();
        process.stop().unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert!(process.is_running());
        process.resume().unwrap();
        assert!(process.ended(Duration::from_secs(10)).await.unwrap().success());
        process.kill().unwrap();
        assert!(process.stop().is_err());
    }

    /// The process that is started here starts one itself and is then killed.
    #[tokio::test]
    async fn what_a_killed_program_started_is_killed_too() {
        use std::io::Read;
        let shell = "setpriv --pdeathsig KILL -- sleep 600 & echo $!; wait";
        let parent = Process::start("sh", ["-c", shell], |command| {
            command.stdout(std::process::Stdio::piped());
        })
        .unwrap();
        let (_, stdout) = parent.take_pipes();
        let mut stdout = stdout.unwrap();
        let mut line = [0; 32];
        let read = stdout.read(&mut line).unwrap();
        let id: u32 = std::str::from_utf8(&line[..read]).unwrap().trim().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        parent.kill().unwrap();
        let gone = |id| {
            let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        for _ in 0..500 {
            if gone(id) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("process {id} outlived its parent");
    }
}
