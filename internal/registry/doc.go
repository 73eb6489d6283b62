// Package registry stores named models and their earlier versions in a folder. A model file is written completely
// or not at all, even if the process or the machine stops. HTTP and inference must not
// be here.
package registry
