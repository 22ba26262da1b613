// Command k8s is every Kubernetes component that a cluster on one machine
// needs, in one binary: `k8s kube-apiserver ...`, or through a link of that
// name. One binary links the shared packages once, which saves minutes of
// build time and most of the disk space that separate ones would take.
//
// Built and started by deploy/local (Python); see building.py there.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectlcli "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// etcd brings its own main function: it is no cobra command that can be run
// like the others.
const etcd = "etcd"

var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 newKubeletCommand,
	"kubectl":                 func() *cobra.Command { return kubectlcli.NewDefaultKubectlCommand() },
}

func main() {
	name, args := component(os.Args)
	if name == etcd {
		etcdmain.Main(append([]string{etcd}, args...))
		return
	}
	if name == pki {
		if err := runPKI(args); err != nil {
			fmt.Fprintf(os.Stderr, "k8s: %v\n", err)
			os.Exit(1)
		}
		return
	}
	newCommand, known := components[name]
	if !known {
		fmt.Fprintf(os.Stderr, "k8s: unknown component %q, expected %s\n", name, expected())
		os.Exit(2)
	}
	// The commands parse os.Args themselves, kubectl its plugins too.
	os.Args = append([]string{name}, args...)
	if name == "kubectl" {
		// kubectl words its own errors: "Error from server (NotFound): ...".
		if err := cli.RunNoErrOutput(newCommand()); err != nil {
			exitLikeKubectl(err)
		}
		return
	}
	os.Exit(cli.Run(newCommand()))
}

// component tells which component is asked for, by the program's own name or
// else by its first argument, and the arguments that are left for it.
func component(argv []string) (string, []string) {
	name := filepath.Base(argv[0])
	if _, known := components[name]; known || name == etcd || name == pki {
		return name, argv[1:]
	}
	if len(argv) < 2 {
		return "", nil
	}
	return argv[1], argv[2:]
}

func expected() string {
	return "etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kubectl or pki"
}
