//! What a URL is for.

/// What a URL is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A command.
    Exec(Exec),
    /// A container's own process.
    Attach(Attach),
    /// Ports of a pod.
    PortForward(PortForward),
}

impl Target {
    /// The first part of the URL's path.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// Which standard streams a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandardStreams {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; never with a terminal, which has one output.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its streams.
    pub streams: StandardStreams,
}

/// A container to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container: String,
    /// The streams.
    pub streams: StandardStreams,
}

/// A pod to forward to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// The pod's id.
    pub pod: String,
    /// Ports, for the one kind of client that does not name them itself.
    pub ports: Vec<u16>,
}
