package main

import cmdutil "k8s.io/kubectl/pkg/cmd/util"

// exitLikeKubectl prints the error the way kubectl does, and ends the program.
func exitLikeKubectl(err error) {
	cmdutil.CheckErr(err)
}
