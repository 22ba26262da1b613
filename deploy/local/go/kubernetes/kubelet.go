//go:build !kubelet_without_context

package main

import (
	"context"

	"github.com/spf13/cobra"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// newKubeletCommand is for Kubernetes 1.34 and later.
func newKubeletCommand() *cobra.Command {
	return kubelet.NewKubeletCommand(context.Background())
}
