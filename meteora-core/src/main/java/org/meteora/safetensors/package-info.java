/** Reads and writes safetensors files, mapped and never trusted. */
package org.meteora.safetensors;
