//! A container against processes on their way into it: an exec's has been the agent's launcher until
//! it executes its command.

use bulkhead_proto::cri::{
    ContainerConfig, LinuxContainerConfig, LinuxContainerSecurityContext, NamespaceMode,
    NamespaceOption,
};
use tokio::time::Instant;

use super::image;
use crate::{
    Outcome, check,
    cri::{PATIENCE, pause, pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

const TOOL: &str = "/tools/meddle";

pub(super) fn tests() -> Vec<Test> {
    vec![test!(
        "security",
        an_exec_on_its_way_into_a_container_is_left_alone,
        LIMIT * 2
    )]
}

fn sharing(name: &str, text: &str, pid: NamespaceMode) -> ContainerConfig {
    let mut config = script(name, &image("volume-tools"), text);
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            namespace_options: Some(NamespaceOption {
                pid: pid.into(),
                ..NamespaceOption::default()
            }),
            ..LinuxContainerSecurityContext::default()
        }),
        ..LinuxContainerConfig::default()
    });
    config
}

async fn an_exec_on_its_way_into_a_container_is_left_alone(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(&image("volume-tools")).await?;
    for handler in ["kvm", "host"] {
        let mut config = pod(&format!("meddle-{handler}"));
        if handler == "kvm" {
            // With it a change of user opens a process to others, unless it closes itself again.
            let linux = config.linux.get_or_insert_default();
            let sysctl = ("fs.suid_dumpable".to_owned(), "1".to_owned());
            linux.sysctls.extend([sysctl]);
        }
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let wait = "sleep 1000";
        let main = cri
            .run(&id, &config, sharing("main", wait, NamespaceMode::Pod))
            .await?;
        let other = cri
            .run(
                &id,
                &config,
                sharing("other", wait, NamespaceMode::Container),
            )
            .await?;
        let looking = format!("{TOOL} look >/tmp/log & wait");
        let meddler = cri
            .run(&id, &config, sharing("look", &looking, NamespaceMode::Pod))
            .await?;
        // Until it has seen some: how long one is on its way is for the scheduler to say.
        let began = Instant::now();
        loop {
            for _ in 0..5 {
                let done = cri.exec(&main, &["true"]).await?;
                check!(done.exit_code == 0, "{handler}: {done:?}");
            }
            let log = cri.shell(&meddler, "cat /tmp/log").await?;
            let got: Vec<_> = log.lines().filter(|line| line.starts_with("got")).collect();
            check!(got.is_empty(), "{handler}: {got:?}");
            if log.lines().count() >= 3 {
                break;
            }
            check!(
                began.elapsed() < PATIENCE,
                "{handler}: nothing was seen: {log:?}"
            );
        }
        cri.stop(&meddler, 0).await?;

        // A container may stop its own execs. Those of others, and the launcher, go on.
        let stopping = format!("{TOOL} stop >/tmp/log & wait");
        let meddler = cri
            .run(&id, &config, sharing("stop", &stopping, NamespaceMode::Pod))
            .await?;
        let deadline = Instant::now() + PATIENCE;
        let stuck = async {
            while cri.exec(&main, &["true"]).await.is_ok() {
                pause(deadline, "an exec to be stopped, and ended").await?;
            }
            Ok::<_, crate::Failure>(())
        };
        let meanwhile = async {
            for _ in 0..3 {
                let said = cri.shell(&other, "echo there").await?;
                check!(said == "there\n", "{handler}: {said:?}");
            }
            Ok::<_, crate::Failure>(())
        };
        let (ended, went_on) = tokio::join!(stuck, meanwhile);
        went_on.and(ended)?;
        cri.stop(&meddler, 0).await?;
        let done = cri.exec(&main, &["true"]).await?;
        check!(done.exit_code == 0, "{handler}: {done:?}");
        cri.remove_pod(&id).await?;
    }
    Ok(())
}
