//! A pod's containers: their order, probes, hooks, ends, and what is said where they do not start.

use tokio::io::AsyncReadExt;

use super::super::{
    case::Case,
    cluster::Cluster,
    manifests::{BUSYBOX, container, pod},
};
use crate::{Outcome, case, check};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(init_and_sidecar_containers),
        case!(probes_and_the_previous_log),
        case!(hooks_and_grace),
        case!(a_failing_pull_says_why),
        case!(termination_messages),
        case!(shared_processes_and_host_names),
    ]
}

async fn init_and_sidecar_containers(cluster: &Cluster) -> Outcome {
    let mounts =
        "volumeMounts: [{name: dir, mountPath: /dir}], resources: {limits: {memory: 32Mi}}";
    let manifest = format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: sidecar}}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 5
      volumes: [{{name: dir, emptyDir: {{}}}}]
      initContainers:
      - {{name: first, image: "{BUSYBOX}", command: [sh, -c, 'echo first >>/dir/order'], {mounts}}}
      - name: side
        image: "{BUSYBOX}"
        restartPolicy: Always
        command: [sh, -c, 'trap "echo side ends; exit 0" TERM; sleep 2; echo side >>/dir/order; touch /dir/up; while :; do sleep 1; done']
        startupProbe: {{exec: {{command: [test, -e, /dir/up]}}, periodSeconds: 1, failureThreshold: 120}}
        {mounts_block}
      - {{name: second, image: "{BUSYBOX}", command: [sh, -c, 'echo second >>/dir/order'], {mounts}}}
      containers:
      - {{name: main, image: "{BUSYBOX}", command: [sh, -c, 'echo main >>/dir/order; cat /dir/order'], {mounts}}}
"#,
        mounts_block = mounts.replace(", resources", "\n        resources"),
    );
    cluster.apply(&manifest).await?;
    cluster.wait("job/sidecar", "condition=Complete").await?;
    let said = cluster
        .kubectl
        .run(&["logs", "job/sidecar", "-c", "main"])
        .await?;
    check!(said == "first\nside\nsecond\nmain\n", "the order is {said}");
    let said = cluster
        .kubectl
        .run(&["logs", "job/sidecar", "-c", "side"])
        .await?;
    check!(said == "side ends\n", "the sidecar said {said}");
    cluster.delete("job/sidecar").await
}

async fn probes_and_the_previous_log(cluster: &Cluster) -> Outcome {
    let probe = |kind: &str, file: &str, more: &str| {
        format!(
            "{kind}: {{exec: {{command: [test, -e, {file}]}}, periodSeconds: 1, timeoutSeconds: 20, {more}}}"
        )
    };
    let probes = [
        probe("startupProbe", "/run-dir/started", "failureThreshold: 120"),
        probe("readinessProbe", "/run-dir/ready", "failureThreshold: 1"),
        probe("livenessProbe", "/run-dir/alive", "failureThreshold: 1"),
        "volumeMounts: [{name: dir, mountPath: /run-dir}], resources: {limits: {memory: 32Mi}}"
            .to_owned(),
    ];
    let script = "n=$(cat /run-dir/count 2>/dev/null || echo 1); echo \"instance $n\"; echo $((n + 1)) >/run-dir/count; \
        touch /run-dir/alive; sleep 2; touch /run-dir/started /run-dir/ready; exec sleep 100000";
    let volumes = "volumes: [{name: dir, emptyDir: {}}]";
    cluster
        .apply(&pod("probed", script, volumes, &probes.join(", ")))
        .await?;
    cluster.ready("probed").await?;
    cluster.exec("probed", "rm /run-dir/ready").await?;
    cluster.wait("pod/probed", "condition=Ready=false").await?;
    let seen = cluster.get("pod/probed").await?;
    check!(
        container(&seen, "main")["restartCount"] == 0,
        "it was started again"
    );
    cluster.exec("probed", "rm /run-dir/alive").await?;
    cluster
        .until("pod/probed", "a second instance", |pod| {
            container(pod, "main")["restartCount"] == 1 && container(pod, "main")["ready"] == true
        })
        .await?;
    let said = cluster.kubectl.run(&["logs", "probed"]).await?;
    let before = cluster
        .kubectl
        .run(&["logs", "--previous", "probed"])
        .await?;
    check!(
        said == "instance 2\n" && before == "instance 1\n",
        "logs: {said} {before}"
    );
    cluster.delete("pod/probed").await
}

async fn hooks_and_grace(cluster: &Cluster) -> Outcome {
    let hooks = "lifecycle: {postStart: {exec: {command: [sh, -c, 'echo post >/proc/1/fd/1']}}, \
        preStop: {exec: {command: [sh, -c, 'sleep 2; echo pre >/proc/1/fd/1']}}}, resources: {limits: {memory: 32Mi}}";
    let script = "trap 'echo term; exit 0' TERM; while :; do sleep 1; done";
    let manifest = pod("hooked", script, "", hooks).replace("Seconds: 1,", "Seconds: 120,");
    cluster.apply(&manifest).await?;
    cluster.ready("hooked").await?;
    let mut logs = cluster.kubectl.start(&["logs", "-f", "hooked"])?;
    let mut stdout = logs.stdout.take().ok_or("kubectl has no stdout")?;
    cluster.delete("pod/hooked").await?;
    let mut said = String::new();
    let reading = stdout.read_to_string(&mut said);
    tokio::time::timeout(super::super::cluster::POD, reading).await??;
    check!(said == "post\npre\nterm\n", "the order was {said:?}");
    cluster.wait("pod/hooked", "delete").await
}

async fn a_failing_pull_says_why(cluster: &Cluster) -> Outcome {
    let missing = "10.0.2.2:5000/no-such-image:latest";
    let manifest = pod("pulling", "true", "", "").replace(BUSYBOX, missing);
    cluster.apply(&manifest).await?;
    let pod = cluster
        .until("pod/pulling", "a failed pull", |pod| {
            container(pod, "main")["state"]["waiting"]["message"]
                .as_str()
                .is_some_and(|m| m.contains("no-such-image"))
        })
        .await?;
    let waiting = &container(&pod, "main")["state"]["waiting"];
    let (reason, message) = (
        &waiting["reason"],
        waiting["message"].as_str().unwrap_or_default(),
    );
    check!(
        (reason == "ErrImagePull" || reason == "ImagePullBackOff")
            && message.contains("code = NotFound"),
        "it waits so: {waiting}"
    );
    cluster.delete("pod/pulling").await
}

async fn termination_messages(cluster: &Cluster) -> Outcome {
    let manifest = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: last-words}}
spec:
  restartPolicy: Never
  containers:
  - name: file
    image: "{BUSYBOX}"
    command: [sh, -c, 'echo written >/tmp/words; exit 4']
    terminationMessagePath: /tmp/words
    resources: {{limits: {{memory: 32Mi}}}}
  - name: logged
    image: "{BUSYBOX}"
    command: [sh, -c, 'echo logged; exit 5']
    terminationMessagePolicy: FallbackToLogsOnError
    resources: {{limits: {{memory: 32Mi}}}}
"#
    );
    cluster.apply(&manifest).await?;
    let pod = cluster.ended("last-words").await?;
    for (name, code, message) in [("file", 4, "written\n"), ("logged", 5, "logged\n")] {
        let ended = &container(&pod, name)["state"]["terminated"];
        check!(
            ended["exitCode"] == code && ended["message"] == message,
            "{name}: {ended}"
        );
    }
    cluster.delete("pod/last-words").await
}

async fn shared_processes_and_host_names(cluster: &Cluster) -> Outcome {
    let spec = "restartPolicy: Never, shareProcessNamespace: true, hostname: named, subdomain: sub, \
        hostAliases: [{ip: 10.1.2.3, hostnames: [alias.example]}], \
        dnsPolicy: None, dnsConfig: {nameservers: [10.9.8.7], searches: [a.example], options: [{name: ndots, value: '3'}]}";
    let script = "hostname; hostname -f; grep alias.example /etc/hosts | tr -s ' \\t' ' '; sort /etc/resolv.conf; [ $$ != 1 ] && echo shared";
    let limits = "resources: {limits: {memory: 32Mi}}";
    let seen = cluster
        .succeeds("names", &pod("names", script, spec, limits))
        .await?;
    let wanted = "named\nnamed.sub.default.svc.cluster.local\n10.1.2.3 alias.example\n\
        nameserver 10.9.8.7\noptions ndots:3\nsearch a.example\nshared\n";
    check!(seen == wanted, "in the pod: {seen}");
    Ok(())
}
