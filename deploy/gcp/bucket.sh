#!/usr/bin/env bash
# Make the bucket of an atlas and the accounts that may use it; run again, it brings both to what is said here.
#     deploy/gcp/bucket.sh PROJECT BUCKET [LOCATION]
# Needs gcloud, logged in as somebody who may make buckets and accounts in the project.
set -euo pipefail

project=${1:?expected a project: bucket.sh PROJECT BUCKET [LOCATION]}
bucket=${2:?expected the name of a bucket: bucket.sh PROJECT BUCKET [LOCATION]}
# Workers belong where the bucket is: reading within a region has no egress cost.
location=${3:-europe-west4}
# Of the Kubernetes service account in ../kubernetes, which acts as the builder.
member="serviceAccount:$project.svc.id.goog[daodask/daodask]"

# Uniform access: who may do what is said once, for the bucket; no object has a list of its own, and none can be public.
# Soft delete: what was deleted or overwritten by mistake can be restored for a week. No versioning, as nothing in a
# store is ever overwritten, and no retention policy, as vacuum must be able to remove.
# The lifecycle removes what broken uploads and abandoned builds leave. Datasets that no snapshot names it can't tell from
# others: that is the work of `daodask vacuum`, which ../kubernetes/vacuum.yaml runs once a week.
settings=(
    --uniform-bucket-level-access
    --public-access-prevention
    --soft-delete-duration=7d
    --lifecycle-file="$(dirname "$0")/lifecycle.json"
)
if gcloud storage buckets describe "gs://$bucket" --project="$project" >/dev/null 2>&1; then
    gcloud storage buckets update "gs://$bucket" --project="$project" "${settings[@]}"
else
    gcloud storage buckets create "gs://$bucket" --project="$project" --location="$location" "${settings[@]}"
fi

# Two accounts: who builds may write and remove, who reads may not. Both for this bucket alone, and neither may see or
# change the bucket's own settings.
account() {
    local name=$1 role=$2 about=$3
    local email="$name@$project.iam.gserviceaccount.com"
    gcloud iam service-accounts describe "$email" --project="$project" >/dev/null 2>&1 \
        || gcloud iam service-accounts create "$name" --project="$project" --display-name="$about"
    gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$email" --role="$role"
}
account daodask-builder roles/storage.objectUser "daodask: builds stores"
account daodask-reader roles/storage.objectViewer "daodask: reads stores"

# Pods of the cluster act as the builder, so that there is no key to keep.
gcloud iam service-accounts add-iam-policy-binding "daodask-builder@$project.iam.gserviceaccount.com" \
    --project="$project" --role=roles/iam.workloadIdentityUser --member="$member"
