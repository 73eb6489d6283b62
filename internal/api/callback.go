package api

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/gofiber/fiber/v2"
)

const (
	// maxCallbackURL is the maximum length of a callback_url, in bytes.
	maxCallbackURL = 1 << 10
	// callbackTime is the longest time of one try to deliver a callback.
	callbackTime = 10 * time.Second
	// maxCallbackHeaders is the maximum size of the headers of a callback's answer, in
	// bytes. Its body is not read.
	maxCallbackHeaders = 16 << 10
	// The headers of a signed callback: the time of the try, in seconds since 1970, and
	// signaturePrefix with the HMAC-SHA256, in hexadecimal, of that text, a dot and the body.
	headerTimestamp = "X-Anomaly-Timestamp"
	headerSignature = "X-Anomaly-Signature"
	signaturePrefix = "sha256="
	// maxSecretFile is the maximum size of a file with a secret, in bytes.
	maxSecretFile = 4 << 10
)

// Errors in the configuration of callbacks.
var (
	// ErrCallbackHost is returned, wrapped, by New for an invalid host in
	// Options.CallbackHosts.
	ErrCallbackHost = errors.New("unusable host of callbacks")
	// ErrCallbackSecret is returned, wrapped, by ReadCallbackSecret for an unusable file, and
	// by New for a secret without hosts.
	ErrCallbackSecret = errors.New("unusable secret of callbacks")
)

var errNoCallbacks = &problem{fiber.StatusForbidden, "This service sends no callbacks: leave out callback_url, or start the service with --callback-allow"}

// ReadCallbackSecret returns the secret in a file, without white space around it. It
// returns ErrCallbackSecret, wrapped, for a file with less than minTokenBytes bytes.
func ReadCallbackSecret(path string) ([]byte, error) {
	data, err := files.ReadAtMost(path, maxSecretFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCallbackSecret, err)
	}
	secret := bytes.TrimSpace(data)
	if len(secret) < minTokenBytes || len(data) > maxSecretFile {
		return nil, fmt.Errorf("%w: %s must have %d to %d bytes", ErrCallbackSecret, path, minTokenBytes, maxSecretFile)
	}
	return secret, nil
}

// checkCallbacks returns the hosts of callbacks as checkCallback compares them.
func checkCallbacks(hosts []string, secret []byte) ([]string, error) {
	checked := make([]string, len(hosts))
	for i, host := range hosts {
		u, err := url.Parse("http://" + host)
		if ip, bad := netip.ParseAddr(host); bad == nil && ip.Is6() {
			u, err = &url.URL{Host: "[" + host + "]"}, nil
		}
		if err != nil || u.Hostname() == "" || u.Port() != "" || u.User != nil || u.Path != "" || u.RawQuery != "" || strings.ContainsAny(host, "*, #") {
			return nil, fmt.Errorf("%w: %.100q, expected the name or the address of a host, such as hooks.example.org", ErrCallbackHost, host)
		}
		checked[i] = strings.ToLower(u.Hostname())
	}
	if len(secret) > 0 && len(hosts) == 0 {
		return nil, fmt.Errorf("%w: no host of callbacks is named, set --callback-allow", ErrCallbackSecret)
	}
	return checked, nil
}

// errCallbackAddress is returned for a callback to an address that no client may make
// the service call.
var errCallbackAddress = errors.New("callbacks to this address are not allowed")

// checkCallback returns a problem if the service does not call a URL. A service that
// calls any URL can be made to send requests to hosts that its clients do not reach, so
// that the operator names the hosts.
func (s *Server) checkCallback(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return badRequest("The field callback_url must be an http or https URL without a user name")
	}
	if len(s.options.CallbackHosts) == 0 {
		return errNoCallbacks
	}
	if !slices.Contains(s.options.CallbackHosts, strings.ToLower(u.Hostname())) {
		return &problem{fiber.StatusForbidden, fmt.Sprintf("This service does not call the host of callback_url, %.100q: choose another, or start the service with it in --callback-allow", u.Hostname())}
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && !allowedCallback(ip) {
		return badRequest("The field callback_url has an address to which callbacks are not allowed")
	}
	return nil
}

// allowedCallback reports whether a callback may be sent to an address. Link-local
// addresses have the credentials of machines in clouds.
func allowedCallback(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsValid() && !ip.IsLinkLocalUnicast() && !ip.IsMulticast() && !ip.IsUnspecified() && ip != netip.MustParseAddr("fd00:ec2::254") && ip != netip.MustParseAddr("100.100.100.200")
}

// callbackClient sends callbacks. It follows no redirect, and checks the address that
// it connects to: the name of a host may have another address than before. It uses no
// proxy, which would connect to another address than the one checked.
var callbackClient = &http.Client{
	Timeout:       callbackTime,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxCallbackHeaders,
		DialContext: (&net.Dialer{Timeout: callbackTime, Control: func(_, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil || !allowedCallback(at.Addr()) {
				return fmt.Errorf("%w: %s", errCallbackAddress, address)
			}
			return nil
		}}).DialContext,
	},
}

// callBack sends a job that has ended to its callback URL, as GET /jobs/{id} answers it. It
// sends nothing, and returns nil, if the service does not call the URL any more.
func (s *Server) callBack(ctx context.Context, to string, j jobs.Job) error {
	if err := s.checkCallback(to); err != nil {
		s.log.Warn("a callback was not sent", slog.String("job", j.ID), slog.Any("error", err))
		return nil
	}
	body, err := json.Marshal(j)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
	r.Header.Set(fiber.HeaderUserAgent, ServiceName)
	if secret := s.options.CallbackSecret; len(secret) > 0 {
		at := strconv.FormatInt(time.Now().Unix(), 10)
		r.Header.Set(headerTimestamp, at)
		r.Header.Set(headerSignature, signaturePrefix+signature(secret, at, body))
	}
	res, err := callbackClient.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) { // the log must not have the URL, which may hold a secret
			err = u.Err
		}
		return err
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("the callback was answered with status %d", res.StatusCode)
	}
	return nil
}

// signature returns the HMAC-SHA256 of a time, a dot and a body, in hexadecimal. The time
// is part of it, so that a receiver can refuse a callback that is sent again later.
func signature(secret []byte, at string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(at + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}
