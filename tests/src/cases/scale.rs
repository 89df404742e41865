//! Many pods: at once, and one after the other.

use std::time::Duration;

use crate::{
    Outcome, check,
    cri::pod,
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("scale", ten_pods_at_once, LIMIT),
        test!(
            "scale",
            a_hundred_pods_leave_nothing,
            Duration::from_secs(1800)
        ),
    ]
}

async fn ten_pods_at_once(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let starts = (0..10).map(|number| cri.run_pod(pod(&format!("ten-{number}"))));
    let answers = futures::future::join_all(starts).await;
    let mut failed = Vec::new();
    for answer in answers {
        match answer {
            Ok(id) => cri.remove_pod(&id).await?,
            Err(status) => failed.push(status.message().to_owned()),
        }
    }
    check!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

async fn a_hundred_pods_leave_nothing(context: &mut Context) -> Outcome {
    for number in 0..100 {
        let id = context
            .cri
            .run_pod(pod(&format!("hundred-{number}")))
            .await?;
        context.cri.remove_pod(&id).await?;
    }
    // What is left shows in the look for leaks that follows every test.
    Ok(())
}
