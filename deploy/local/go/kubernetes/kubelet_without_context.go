//go:build kubelet_without_context

package main

import (
	"github.com/spf13/cobra"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// newKubeletCommand is for Kubernetes 1.32 and 1.33, where the command took no context.
func newKubeletCommand() *cobra.Command {
	return kubelet.NewKubeletCommand()
}
