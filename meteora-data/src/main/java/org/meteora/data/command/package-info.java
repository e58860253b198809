/** The commands that make data sets and download. */
package org.meteora.data.command;
