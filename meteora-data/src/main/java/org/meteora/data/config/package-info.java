/** The configuration file, and options that several commands share. */
package org.meteora.data.config;
