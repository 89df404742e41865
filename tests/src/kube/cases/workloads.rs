//! Deployment, StatefulSet, DaemonSet, Job, CronJob.

use super::super::{
    case::Case,
    cluster::Cluster,
    manifests::{BUSYBOX, container, web},
};
use crate::{Outcome, case, check};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(deployment_is_scaled),
        case!(statefulset_keeps_its_volume),
        case!(daemonset_on_host_is_on_the_nodes_kernel),
        case!(job_completes_and_job_fails),
        case!(cronjobs_job_completes),
    ]
}

async fn deployment_is_scaled(cluster: &Cluster) -> Outcome {
    web(cluster).await?;
    let deployment = "deployment/web";
    cluster
        .kubectl
        .run(&["scale", deployment, "--replicas=2"])
        .await?;
    cluster
        .until(deployment, "two replicas", |d| {
            d["status"]["readyReplicas"] == 2
        })
        .await?;
    cluster
        .kubectl
        .run(&["scale", deployment, "--replicas=1"])
        .await?;
    cluster
        .until(deployment, "one replica", |d| d["status"]["replicas"] == 1)
        .await?;
    Ok(())
}

async fn statefulset_keeps_its_volume(cluster: &Cluster) -> Outcome {
    let manifest = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {fsGroup: 2000}
      containers:
      - name: main
        image: 10.0.2.2:5000/busybox:latest
        command: [sh, -c, 'echo "start of $(hostname)" >>/data/starts; exec sleep 100000']
        volumeMounts: [{name: data, mountPath: /data}]
        resources: {limits: {memory: 32Mi}}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: local, resources: {requests: {storage: 1Gi}}}
"#;
    cluster.apply(manifest).await?;
    let first = cluster
        .until("pod/store-0", "to be ready", |pod| {
            container(pod, "main")["ready"] == true
        })
        .await?;
    let uid = first["metadata"]["uid"].clone();
    cluster.delete("pod/store-0").await?;
    cluster
        .until("pod/store-0", "to be another, and ready", |pod| {
            pod["metadata"]["uid"] != uid && container(pod, "main")["ready"] == true
        })
        .await?;
    let starts = cluster
        .exec("store-0", "cat /data/starts; stat -c %g /data")
        .await?;
    check!(
        starts == "start of store-0\nstart of store-0\n2000\n",
        "the volume has: {starts}"
    );
    cluster.delete("statefulset/store").await
}

async fn daemonset_on_host_is_on_the_nodes_kernel(cluster: &Cluster) -> Outcome {
    let manifest = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      runtimeClassName: bulkhead-host
      terminationGracePeriodSeconds: 1
      volumes: [{name: etc, hostPath: {path: /etc}}]
      containers:
      - name: main
        image: 10.0.2.2:5000/busybox:latest
        command: [sleep, "100000"]
        volumeMounts: [{name: etc, mountPath: /host/etc, readOnly: true}]
"#;
    cluster.apply(manifest).await?;
    cluster
        .until("daemonset/agent", "to be ready", |set| {
            set["status"]["numberReady"] == 1
        })
        .await?;
    let kernel = cluster.get("node/node1").await?["status"]["nodeInfo"]["kernelVersion"].clone();
    let here = cluster
        .exec("daemonset/agent", "uname -r; cat /host/etc/hostname")
        .await?;
    let of_node = cluster.host.lock().await.shell("cat /etc/hostname").await?;
    let lines: Vec<&str> = here.lines().collect();
    check!(
        lines == [kernel.as_str().unwrap_or_default(), of_node.trim()],
        "{kernel}, {of_node}: {here}"
    );
    let pod = web(cluster).await?;
    let guest = cluster.exec(&pod, "uname -r").await?;
    check!(
        guest.trim() != kernel,
        "the web server is on the node's kernel"
    );
    cluster.delete("daemonset/agent").await
}

async fn job_completes_and_job_fails(cluster: &Cluster) -> Outcome {
    let job = |name: &str, command: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  backoffLimit: 0\n  template:\n    spec:\n      \
             restartPolicy: Never\n      containers: [{{name: main, image: \"{}\", command: {command}, resources: {{limits: {{memory: 32Mi}}}}}}]\n",
            BUSYBOX
        )
    };
    let jobs = [
        job("good", "[sh, -c, 'echo done; exit 0']"),
        job("bad", "[sh, -c, 'echo why >/dev/termination-log; exit 3']"),
        job("missing", "[no-such-command]"),
    ];
    cluster.apply(&jobs.join("---\n")).await?;
    cluster.wait("job/good", "condition=Complete").await?;
    check!(
        cluster.kubectl.run(&["logs", "job/good"]).await? == "done\n",
        "another log"
    );
    for (name, code, reason, message) in [
        ("bad", 3, "Error", "why"),
        (
            "missing",
            128,
            "StartError",
            "\"no-such-command\": executable file not found in $PATH",
        ),
    ] {
        cluster
            .wait(&format!("job/{name}"), "condition=Failed")
            .await?;
        let args = [
            "get",
            "pods",
            "-l",
            &format!("job-name={name}"),
            "-o",
            "json",
        ];
        let pods: serde_json::Value = serde_json::from_str(&cluster.kubectl.run(&args).await?)?;
        let ended = &container(&pods["items"][0], "main")["state"]["terminated"];
        let said = ended["message"].as_str().unwrap_or_default();
        check!(
            ended["exitCode"] == code && ended["reason"] == reason && said.contains(message),
            "{name} ended so: {ended}"
        );
    }
    for name in ["good", "bad", "missing"] {
        cluster.delete(&format!("job/{name}")).await?;
    }
    Ok(())
}

async fn cronjobs_job_completes(cluster: &Cluster) -> Outcome {
    let manifest = r#"
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  concurrencyPolicy: Forbid
  successfulJobsHistoryLimit: 1
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers: [{name: main, image: "10.0.2.2:5000/busybox:latest", command: [date], resources: {limits: {memory: 32Mi}}}]
"#;
    cluster.apply(manifest).await?;
    cluster
        .until("cronjob/tick", "a Job of it to complete", |cron| {
            cron["status"]["lastSuccessfulTime"].is_string()
        })
        .await?;
    cluster.delete("cronjob/tick").await
}
