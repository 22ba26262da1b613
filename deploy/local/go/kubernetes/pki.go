package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// pki is the name of the component that writes a cluster's certificates. It
// lives here because Go's standard library can make them, while Python's
// cannot, so that no further program or package is needed.
const pki = "pki"

// validity is long enough for any test cluster, and short enough for a key
// that lies unprotected in somebody's cache folder.
const validity = 365 * 24 * time.Hour

// authority is a certificate authority that signs for one cluster.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// runPKI writes into -dir: ca.crt and ca.key; server.crt and server.key for
// every server of the cluster, valid for the names and addresses in -names;
// client.crt and client.key, by which the API server identifies itself to etcd
// and to the kubelets; service-account.key.
func runPKI(args []string) error {
	flags := flag.NewFlagSet(pki, flag.ContinueOnError)
	dir := flags.String("dir", "", "existing folder to write to")
	names := flags.String("names", "", "names and addresses of the servers, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || *names == "" {
		return fmt.Errorf("%s needs -dir and -names", pki)
	}
	ca, err := newAuthority(*dir)
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "server"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range strings.Split(*names, ",") {
		if address := net.ParseIP(name); address != nil {
			server.IPAddresses = append(server.IPAddresses, address)
		} else {
			server.DNSNames = append(server.DNSNames, name)
		}
	}
	if err := ca.issue(*dir, "server", server); err != nil {
		return err
	}
	client := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := ca.issue(*dir, "client", client); err != nil {
		return err
	}
	_, err = newKey(*dir, "service-account")
	return err
}

func newAuthority(dir string) (*authority, error) {
	key, err := newKey(dir, "ca")
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "local-cluster-ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	ca := &authority{certificate: template, key: key}
	der, err := ca.sign(template, key)
	if err != nil {
		return nil, err
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return ca, writePEM(dir, "ca.crt", "CERTIFICATE", der)
}

func (ca *authority) issue(dir, name string, template *x509.Certificate) error {
	key, err := newKey(dir, name)
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := ca.sign(template, key)
	if err != nil {
		return err
	}
	return writePEM(dir, name+".crt", "CERTIFICATE", der)
}

func (ca *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// An hour of slack for machines whose clock is set back after their start.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(validity)
	return x509.CreateCertificate(rand.Reader, template, ca.certificate, &key.PublicKey, ca.key)
}

func newKey(dir, name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(dir, name+".key", "EC PRIVATE KEY", der)
}

func writePEM(dir, file, kind string, der []byte) error {
	block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	return os.WriteFile(filepath.Join(dir, file), block, 0o600)
}
